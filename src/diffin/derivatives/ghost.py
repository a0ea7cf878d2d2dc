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
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from diffin import vectors
from diffin.batches import Batch, batch_size, select
from diffin.derivatives.base import Measure, Measured, as_float64, refuse_half_precision
from diffin.derivatives.composite import jvp, nested_forward_mode
from diffin.derivatives.difference import refuse_step, unit_step
from diffin.derivatives.gradient import leaves
from diffin.derivatives.hooks import backward, linear_layers
from diffin.errors import DerivativeError
from diffin.probes import Probe
from diffin.task import PerSampleLoss, refuse_coupled
from diffin.vectors import Vector

_log = logging.getLogger(__name__)


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
        refuse_coupled(loss.task, "derivatives='ghost'")
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

    def tangent(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[_Layer, Tensor]:
        """The layer, and its output with U for W."""
        own = dict(self.module.named_parameters(recurse=False))
        directions = {name: self.directions.get(name, torch.zeros_like(p)) for name, p in own.items()}
        return self, functional_call(self.module, directions, args, kwargs)


def _contributions(tangent: Tensor, delta: Tensor | None, size: int) -> Tensor | None:
    """A call's share of every sample's derivative; ``None`` if its outputs cannot be told apart by sample."""
    if delta is None:
        return torch.zeros(size, dtype=tangent.dtype, device=tangent.device)
    if tangent.numel() % size:
        return None
    return (delta * tangent).reshape(size, -1).sum(dim=1)


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
        losses, calls = backward(self._loss, self._point, batch, [(layer.module, layer.tangent) for layer in layers])
        return losses, [(layer, _contributions(tangent, delta, size)) for (layer, tangent), delta in calls]

    def _forward(self, batch: Batch, rest: Vector) -> Tensor:
        fixed = {name: t for name, t in self._point.items() if name not in rest}
        moving = {name: self._point[name] for name in rest}
        with nested_forward_mode():
            _, derivative = jvp(lambda p: self._loss({**fixed, **p}, batch), (moving,), (rest,))
        detached: Tensor = derivative.detach()
        return detached

    def _make_plan(self, batch: Batch) -> tuple[list[_Layer], Vector]:
        """Layers that account exactly for their parameters on two samples, alone and together; the rest by forward mode."""
        found = list(linear_layers(self._loss.task.model, set(self._direction)))
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
