"""Directional derivatives from one backward pass over activations; no gradient of a parameter is ever formed.

A layer ``y = f(x; W)`` that is linear in its parameters contributes to the derivative of a sample's loss along U

    D_U l_z  =  sum over the sample's outputs of  (dl_z / dy) * f(x; U),

so a second call of the layer, with U in place of W, and the gradient of the loss with respect to the layer's *output* are
all that is needed. The backward pass leaves out every parameter gradient. Samples are told apart because a loss depends
on its own sample only: one backward of the sum serves the whole batch.

Parameters that no such layer covers (bare ones, attention with packed weights, weights used behind the layer's back)
are found by comparing, once, with the true gradients of two samples, and are left to forward mode.

The mixed derivative of a probe is a central difference of first derivatives: with ``F(e) = D_{v + e u} l (theta + e d)``,

    F'(0)  =  D2_{v,d} l + D_u l  =  ( F(e) - F(-e) ) / 2e  +  O(e^2).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.func import functional_call

from diffin import vectors
from diffin.batches import Batch, batch_size, select
from diffin.derivatives.base import Measure, Measured, as_float64, refuse_half_precision
from diffin.derivatives.composite import jvp, nested_forward_mode, unfused_encoder
from diffin.derivatives.difference import refuse_step, unit_step
from diffin.derivatives.gradient import leaves
from diffin.errors import DerivativeError
from diffin.probes import Probe
from diffin.task import PerSampleLoss
from diffin.vectors import Vector

_log = logging.getLogger(__name__)

LINEAR_IN_PARAMETERS: tuple[type[nn.Module], ...] = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Embedding,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.RMSNorm,
)
"""Layers whose output is linear in their own parameters (normalisation: in evaluation mode)."""


@dataclass(frozen=True)
class Ghost:
    """One backward with hooks per first derivative, two for a second-order probe.

    Attributes:
        step: displacement for the difference of first derivatives, over the norm of the parameters.
    """

    step: float
    name: ClassVar[str] = "ghost"

    def __post_init__(self) -> None:
        refuse_step(self.step)

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "step": self.step}

    def prepare(self, loss: PerSampleLoss, probe: Probe) -> Measure:
        if probe.mixed is None:
            first = _FirstDerivative(loss, loss.parameters, probe.u)
            return lambda batch: Measured(*first(batch))
        refuse_half_precision(loss)
        u, v, d = (vectors.like(vector, loss.parameters) for vector in (probe.u, *probe.mixed))
        # Without a d nothing is displaced and the difference is exact for every e: turn v by as much as u is long.
        step = unit_step(loss.parameters, d, self.step) or (vectors.norm(v) / (vectors.norm(u) or 1.0)) or 1.0
        ahead = _FirstDerivative(loss, vectors.add(loss.parameters, d, step), vectors.add(v, u, step))
        behind = _FirstDerivative(loss, vectors.add(loss.parameters, d, -step), vectors.add(v, u, -step))

        def measure(batch: Batch) -> Measured:
            (loss_ahead, plus), (loss_behind, minus) = ahead(batch), behind(batch)
            return Measured((loss_ahead + loss_behind) / 2, (plus - minus) / (2 * step))

        return measure


@dataclass(frozen=True)
class _Layer:
    """A module of known kind, and the direction of some of its own parameters by their local names."""

    module: nn.Module
    directions: dict[str, Tensor]


@dataclass(frozen=True)
class _Call:
    """One call of a layer during a forward pass: its output's place in the graph, and its output with U for W."""

    layer: _Layer
    edge: GradientEdge
    tangent: Tensor

    def contributions(self, delta: Tensor | None, size: int) -> Tensor | None:
        """The layer's share of every sample's derivative; ``None`` if its outputs cannot be told apart by sample."""
        if delta is None:
            return torch.zeros(size, dtype=self.tangent.dtype, device=self.tangent.device)
        if self.tangent.numel() % size:
            return None
        return (delta.detach() * self.tangent).reshape(size, -1).sum(dim=1)


class _FirstDerivative:
    """``D_u l_z`` at a point, for batches."""

    def __init__(self, loss: PerSampleLoss, point: Mapping[str, Tensor], direction: Mapping[str, Tensor]) -> None:
        self._loss = loss
        self._point = dict(point)
        self._direction = vectors.like(direction, point)
        self._plan: tuple[list[_Layer], Vector] | None = None

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Losses and derivatives, Float64[Tensor, "B"] each."""
        layers, rest = self._plan or self._make_plan(batch)
        losses, shares = self._pass(batch, layers)
        derivatives = torch.zeros_like(losses)
        for _, share in shares:
            if share is None:
                raise DerivativeError(
                    "a layer's output cannot be divided among the samples of this batch, though it could for the first two; "
                    "pass derivatives='forward' or 'difference'"
                )
            derivatives += share
        if rest:
            derivatives += self._forward(batch, rest)
        return as_float64(losses), as_float64(derivatives)

    def _pass(self, batch: Batch, layers: list[_Layer]) -> tuple[Tensor, list[tuple[_Layer, Tensor | None]]]:
        """One forward and one backward: the losses, and each layer call's share of the derivatives."""
        size = batch_size(batch)
        with torch.enable_grad(), _hooked(layers) as calls, unfused_encoder():
            losses = self._loss(self._point, batch)
            if not (calls and losses.requires_grad):
                return losses.detach(), []
            deltas = torch.autograd.grad(losses.sum(), [call.edge for call in calls], allow_unused=True)
        return losses.detach(), [
            (c.layer, c.contributions(delta, size)) for c, delta in zip(calls, deltas, strict=True)
        ]

    def _forward(self, batch: Batch, rest: Vector) -> Tensor:
        fixed = {name: t for name, t in self._point.items() if name not in rest}
        moving = {name: self._point[name] for name in rest}
        with nested_forward_mode():
            _, derivative = jvp(lambda p: self._loss({**fixed, **p}, batch), (moving,), (rest,))
        detached: Tensor = derivative.detach()
        return detached

    def _make_plan(self, batch: Batch) -> tuple[list[_Layer], Vector]:
        """Layers that account exactly for their parameters on two samples, alone and together; the rest by forward mode."""
        found = list(_layers(self._loss.task.model, set(self._direction)))
        single = [
            (_Layer(module, {local: self._direction[name]}), name)
            for module, own in found
            for local, name in own.items()
        ]
        with torch.no_grad():
            finite = torch.isfinite(self._loss(self._point, batch)).nonzero().flatten()
        pair = select(batch, finite[:2]) if len(finite) else select(batch, slice(0, 1))
        alone = [select(batch, slice(i, i + 1)) for i in range(batch_size(pair))]
        wanted = [self._products(one) for one in alone]
        scale = max(abs(value) for products in wanted for value in products.values())
        apart = [self._by_parameter(one, single) for one in alone]
        together = self._by_parameter(pair, single)
        covered = {
            name
            for name in {name for _, name in single}
            if (shares := together[name]) is not None
            and all(
                (own := apart[i][name]) is not None
                and _close(float(own), wanted[i][name], scale)
                and _close(float(shares[i]), wanted[i][name], scale)
                for i in range(len(alone))
            )
        }
        layers = [
            _Layer(module, {local: self._direction[name] for local, name in own.items() if name in covered})
            for module, own in found
            if covered.intersection(own.values())
        ]
        plan = layers, {name: u for name, u in self._direction.items() if name not in covered}
        # A single sample, or one without a finite loss, says too little to rely on it for other batches.
        if len(alone) > 1:
            self._plan = plan
            if plan[1]:
                _log.debug("ghost: %d parameters go by forward mode, %s first", len(plan[1]), next(iter(plan[1])))
        return plan

    def _by_parameter(self, batch: Batch, single: list[tuple[_Layer, str]]) -> dict[str, Tensor | None]:
        """What the hooks make of every parameter; ``None`` where they cannot tell samples apart, zero where none fired."""
        names = {id(layer): name for layer, name in single}
        losses, shares = self._pass(batch, [layer for layer, _ in single])
        totals: dict[str, Tensor | None] = {name: torch.zeros_like(losses) for name in names.values()}
        for layer, share in shares:
            total = totals[names[id(layer)]]
            totals[names[id(layer)]] = None if total is None or share is None else total + share
        return totals

    def _products(self, batch: Batch) -> dict[str, float]:
        """``<u_p, dl/dp>`` for every parameter p, from true parameter gradients."""
        point = leaves(self._point)
        with torch.enable_grad():
            gradients = torch.autograd.grad(self._loss(point, batch).sum(), list(point.values()), allow_unused=True)
        return {
            name: 0.0 if g is None else float((g * self._direction[name]).sum())
            for name, g in zip(point, gradients, strict=True)
        }


def _close(value: float, wanted: float, scale: float) -> bool:
    return abs(value - wanted) <= 1e-3 * abs(wanted) + 1e-5 * scale


def _layers(model: nn.Module, names: set[str]) -> Iterator[tuple[nn.Module, dict[str, str]]]:
    """Modules of known kind, each with {its own parameter's name: the name in ``names``}; shared weights stay shared."""
    canonical = {id(p): name for name, p in model.named_parameters()}
    for module in model.modules():
        if type(module).forward in _FORWARDS:
            own = {local: canonical[id(p)] for local, p in module.named_parameters(recurse=False)}
            own = {local: name for local, name in own.items() if name in names}
            if own:
                yield module, own


# A subclass that overrides forward may compute anything, so the forward decides, not the class.
_FORWARDS = {kind.forward for kind in LINEAR_IN_PARAMETERS}


@contextmanager
def _hooked(layers: list[_Layer]) -> Iterator[list[_Call]]:
    """While inside, every call of a layer is noted in the list."""
    calls: list[_Call] = []
    inside = False

    def hook(layer: _Layer) -> Callable[..., Tensor | None]:
        def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
            nonlocal inside
            if inside:
                return None
            own = dict(module.named_parameters(recurse=False))
            directions = {name: layer.directions.get(name, torch.zeros_like(p)) for name, p in own.items()}
            inside = True
            try:
                # Now, not after the pass: an in-place operation may overwrite the input once the layer is done with it.
                with torch.no_grad():
                    tangent = functional_call(module, directions, args, kwargs)
            finally:
                inside = False
            if not output.requires_grad:
                # Parameters carry no gradient, so the graph has to be started at the first outputs.
                output = output + torch.zeros((), dtype=output.dtype, device=output.device, requires_grad=True)
            calls.append(_Call(layer, get_gradient_edge(output), tangent))
            return output

        return after

    handles = [layer.module.register_forward_hook(hook(layer), with_kwargs=True) for layer in layers]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
