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
from diffin.batches import Batch
from diffin.derivatives.base import Measure, Measured, as_float64, refuse_half_precision
from diffin.derivatives.composite import jvp, nested_forward_mode
from diffin.derivatives.coverage import Plan, examples, planned
from diffin.derivatives.difference import refuse_step, unit_step
from diffin.derivatives.hooks import backward, linear_layers
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
    """A module of known kind, with the direction of some of its own parameters.

    Attributes:
        module: it.
        names: {its own parameter's name: the model's name}.
        directions: by its own names.
    """

    module: nn.Module
    names: dict[str, str]
    directions: dict[str, Tensor]

    def tangent(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[_Layer, Tensor]:
        """The layer, and its output with U for W."""
        own = dict(self.module.named_parameters(recurse=False))
        directions = {name: self.directions.get(name, torch.zeros_like(p)) for name, p in own.items()}
        tangent: Tensor = functional_call(self.module, directions, args, kwargs)
        if isinstance(self.module, nn.Embedding) and self.module.padding_idx is not None:
            # Looking up padding has no gradient, though the row may have one for another use.
            padding = (args[0] if args else kwargs["input"]) == self.module.padding_idx
            tangent = tangent.masked_fill(padding.unsqueeze(-1), 0.0)
        return self, tangent


_Calls = list[tuple[_Layer, Tensor, Tensor | None]]
"""Of every call of a layer its output with U for W, and the gradient of the loss with respect to its true output."""


def _contributions(tangent: Tensor, delta: Tensor | None, size: int) -> Tensor | None:
    """A call's share of every sample's derivative; ``None`` if its outputs cannot be told apart by sample."""
    if delta is None:
        return torch.zeros(size, dtype=tangent.dtype, device=tangent.device)
    if delta.numel() % size:
        return None
    return (delta * tangent).reshape(size, -1).sum(dim=1)


class _FirstDerivative:
    """``D_u l_z`` at a point, for batches."""

    def __init__(self, loss: PerSampleLoss, point: Mapping[str, Tensor], direction: Mapping[str, Tensor]) -> None:
        self._loss = loss
        self._point = dict(point)
        self._direction = vectors.like(direction, point)
        self._plan: Plan | None = None

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Losses and derivatives, Float64[Tensor, "B"] each."""
        plan = self._plan or self._make_plan(batch)
        while True:
            losses, calls = self._calls(batch, self._layers(plan), plan.handed)
            shares = [(layer, self._share(plan, tangent, delta, layer, len(losses))) for layer, tangent, delta in calls]
            lost = {name for layer, share in shares if share is None for name in layer.names.values()}
            if not lost:
                break
            plan = plan.without(lost)
            self._plan = plan if plan.lasting else None
        derivatives = torch.zeros_like(losses)
        for _, share in shares:
            derivatives += 0.0 if share is None else share
        if plan.rest:
            derivatives += self._forward(batch, {name: self._direction[name] for name in plan.rest})
        return as_float64(losses), as_float64(derivatives)

    def _share(self, plan: Plan, tangent: Tensor, delta: Tensor | None, layer: _Layer, size: int) -> Tensor | None:
        """See :func:`_contributions`; ``None`` also for a call that nothing was compared with."""
        if delta is not None and plan.lost(layer.module, delta):
            return None
        return _contributions(tangent, delta, size)

    def _layers(self, plan: Plan) -> list[_Layer]:
        return [self._layer(module, names) for module, names in plan.layers]

    def _layer(self, module: nn.Module, names: dict[str, str]) -> _Layer:
        return _Layer(module, names, {local: self._direction[name] for local, name in names.items()})

    def _calls(self, batch: Batch, layers: list[_Layer], handed: frozenset[nn.Module]) -> tuple[Tensor, _Calls]:
        """One forward and one backward: the losses, and what they say of each call."""
        notes = [(layer.module, layer.tangent) for layer in layers]
        losses, calls = backward(self._loss, self._point, batch, notes, handed)
        return losses, [(layer, tangent, delta) for (layer, tangent), delta in calls]

    def _forward(self, batch: Batch, rest: Vector) -> Tensor:
        fixed = {name: t for name, t in self._point.items() if name not in rest}
        moving = {name: self._point[name] for name in rest}
        with nested_forward_mode():
            _, derivative = jvp(lambda p: self._loss({**fixed, **p}, batch), (moving,), (rest,))
        detached: Tensor = derivative.detach()
        return detached

    def _make_plan(self, batch: Batch) -> Plan:
        """Layers that account exactly for their parameters on two samples, alone and together; the rest by forward mode."""
        found = examples(self._loss, self._point, batch, self._products)
        scale = max((abs(value) for products in found.kept for value in products.values()), default=0.0)

        def agreeing(trial: Plan) -> tuple[set[str], set[nn.Module]]:
            apart = [self._by_parameter(one, trial)[0] for one in found.alone]
            together, seen = self._by_parameter(found.together, trial)
            known = {
                name
                for name, shares in together.items()
                if shares is not None
                and all(
                    (own := apart[i][name]) is not None
                    and _close(float(own), wanted[name], scale)
                    and _close(float(shares[i]), wanted[name], scale)
                    for i, wanted in enumerate(found.kept)
                )
            }
            return known, seen

        layers = list(linear_layers(self._loss.task.model, set(self._direction)))
        plan = planned(layers, list(self._direction), found, agreeing)
        if plan.lasting:
            self._plan = plan
            if plan.rest:
                _log.debug("ghost: %d parameters go by forward mode, %s first", len(plan.rest), plan.rest[0])
        return plan

    def _by_parameter(self, batch: Batch, trial: Plan) -> tuple[dict[str, Tensor | None], set[nn.Module]]:
        """What the hooks make of every parameter, and the layers they saw.

        ``None`` where they cannot tell samples apart, zero where none fired.
        """
        single = [self._layer(module, {local: name}) for module, names in trial.layers for local, name in names.items()]
        losses, calls = self._calls(batch, single, trial.handed)
        totals: dict[str, Tensor | None] = {
            name: torch.zeros_like(losses) for layer in single for name in layer.names.values()
        }
        for layer, tangent, delta in calls:
            share = _contributions(tangent, delta, len(losses))
            for name in layer.names.values():
                total = totals[name]
                totals[name] = None if total is None or share is None else total + share
        return totals, {layer.module for layer, _, delta in calls if delta is not None}

    def _products(self, gradient: Vector) -> dict[str, float]:
        """``<u_p, dl/dp>`` for every parameter p."""
        return {name: float((g * self._direction[name]).sum()) for name, g in gradient.items()}


def _close(value: float, wanted: float, scale: float) -> bool:
    return abs(value - wanted) <= 1e-3 * abs(wanted) + 1e-5 * scale
