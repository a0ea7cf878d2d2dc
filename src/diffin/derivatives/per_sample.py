"""Gradients of every sample of a batch from one forward and one backward pass, one parameter at a time.

A loss depends on its own sample only, so one backward of the sum serves the whole batch: hooks keep the input of every layer
that is linear in its parameters and the gradient with respect to its output, and :mod:`diffin.derivatives.shares` makes of
the two what is asked: rows, squared norms, products with directions. The N x P matrix of all gradients never exists.

Parameters that no such layer covers (bare ones, attention with packed weights, weights used behind the layer's back) are
found by comparing, once, with the true gradients of two samples, and are left to ``vmap(grad)``, or to one backward pass a
sample where the model cannot be vectorised.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from diffin import vectors
from diffin.batches import Batch, batch_size
from diffin.derivatives.base import as_float64
from diffin.derivatives.coverage import Plan, examples, planned
from diffin.derivatives.hooks import backward, linear_layers
from diffin.derivatives.layers import noted, share
from diffin.derivatives.shares import Formed, Share, merged, summed, total
from diffin.derivatives.without_hooks import WithoutHooks
from diffin.task import PerSampleLoss, refuse_coupled
from diffin.vectors import Vector

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sums:
    """What is known of the gradients of B samples without forming them.

    Attributes:
        losses: Float64[Tensor, "B"].
        squares: Float64[Tensor, "B"], ``sum over parameters p of rate_p |g_p|^2``.
        products: Float64[Tensor, "B r"], with each direction.
    """

    losses: Tensor
    squares: Tensor
    products: Tensor


_Noted = tuple[nn.Module, dict[str, str], Tensor]
"""A layer, its parameters, and what their shares need of a call of it."""

_Shares = Iterator[tuple[str, list[Share] | None]]
"""Every parameter with its shares, one for each call of a layer; ``None`` where samples cannot be told apart."""


class PerSampleGradients:
    """Gradients of per-sample losses at a point. Use it inside :func:`diffin.task.frozen`.

    Args:
        loss: the losses as a function of the studied parameters.
        at: where, by name; ``loss.parameters`` by default.

    Raises:
        TaskError: the losses are coupled.
    """

    def __init__(self, loss: PerSampleLoss, at: Mapping[str, Tensor] | None = None) -> None:
        refuse_coupled(loss.task, "a gradient of each sample")
        self._loss = loss
        self._point: Vector = {name: (at or loss.parameters)[name].detach() for name in loss.parameters}
        self._plan: Plan | None = None
        self._others = WithoutHooks(loss, self._point)

    def rows(self, batch: Batch) -> tuple[Tensor, Iterator[tuple[str, Tensor]]]:
        """The losses, and the gradients of all samples, parameter by parameter.

        Args:
            batch: B samples, on the device.

        Returns:
            Float64[Tensor, "B"], and every studied parameter once with its rows, Float[Tensor, "B *shape"], those of layers
            first. Rows are formed when they are asked for: drop them before the next ones.
        """
        losses, shares, rest = self._pass(batch)

        def each() -> Iterator[tuple[str, Tensor]]:
            for name, of_name in shares:
                if of_name is None:
                    rest.append(name)
                else:
                    yield name, self._whole(name, of_name, batch_size(batch))
                del of_name
            yield from self._others.rows(batch, rest)

        return as_float64(losses), each()

    def sums(
        self, batch: Batch, rates: Mapping[str, float] | None = None, directions: Mapping[str, Tensor] | None = None
    ) -> Sums:
        """Weighted squared norms of the gradients and their products with directions, each layer in its cheapest way.

        Args:
            batch: B samples, on the device.
            rates: the weight of every parameter's square; 1 by default.
            directions: r of them by parameter name, Float[Tensor, "r *shape"] each; none by default.
        """
        size = batch_size(batch)
        losses, shares, rest = self._pass(batch)
        along = directions or {name: t.new_zeros(0, *t.shape) for name, t in self._point.items()}
        norms = torch.zeros_like(as_float64(losses))
        products = norms.new_zeros(size, len(next(iter(along.values()))))

        def add(name: str, of_name: list[Share]) -> None:
            squares, along_each = summed(of_name, size, along[name].to(self._point[name]))
            norms.add_(squares, alpha=1.0 if rates is None else rates[name])
            products.add_(as_float64(along_each))

        for name, of_name in shares:
            if of_name is None:
                rest.append(name)
            elif of_name:
                add(name, of_name)
            del of_name
        for name, rows in self._others.rows(batch, rest):
            add(name, [Formed(rows)])
        return Sums(as_float64(losses), norms, products)

    def _pass(self, batch: Batch) -> tuple[Tensor, _Shares, list[str]]:
        """Losses; the shares of every parameter that hooks cover; the names of the others."""
        plan = self._plan or self._make_plan(batch)
        losses, calls = self._calls(batch, plan)
        return losses, self._shares(calls, plan, batch_size(batch)), list(plan.rest)

    def _calls(self, batch: Batch, plan: Plan) -> tuple[Tensor, list[tuple[_Noted, Tensor | None]]]:
        notes = [(module, partial(_noted, module, names)) for module, names in plan.layers]
        return backward(self._loss, self._point, batch, notes, plan.handed)

    def _shares(self, calls: list[tuple[_Noted, Tensor | None]], plan: Plan, size: int) -> _Shares:
        for name in dict.fromkeys(name for _, names in plan.layers for name in names.values()):
            found = [
                None if plan.lost(module, delta) else share(module, local, self._point[name], x, delta, size)
                for (module, names, x), delta in calls
                for local, known in names.items()
                if known == name and delta is not None
            ]
            whole = [one for one in found if one is not None]
            yield name, whole if len(whole) == len(found) else None

    def _whole(self, name: str, shares: list[Share], size: int) -> Tensor:
        parameter = self._point[name]
        if not shares:  # the loss does not depend on it
            return parameter.new_zeros(size, *parameter.shape)
        return total([one.rows(slice(None)) for one in merged(shares)])

    def _make_plan(self, batch: Batch) -> Plan:
        """Parameters for which hooks give the true gradients of two samples, alone and together; the others without."""
        found = examples(self._loss, self._point, batch, keep=lambda gradient: gradient)
        scale = max((vectors.norm(gradient) for gradient in found.kept), default=0.0)

        def agreeing(trial: Plan) -> tuple[set[str], set[nn.Module]]:
            apart = [dict(self._formed(one, trial)[0]) for one in found.alone]
            together, seen = self._formed(found.together, trial)
            known = {
                name
                for name, rows in together
                if rows is not None
                and all(
                    (own := apart[i][name]) is not None
                    and _close(own[0], wanted[name], scale)
                    and _close(rows[i], wanted[name], scale)
                    for i, wanted in enumerate(found.kept)
                )
            }
            return known, seen

        layers = list(linear_layers(self._loss.task.model, set(self._point)))
        plan = planned(layers, list(self._point), found, agreeing)
        if plan.lasting:
            self._plan = plan
            if plan.rest:
                _log.info("no hook sees %d parameters, %s first; they cost another pass", len(plan.rest), plan.rest[0])
        return plan

    def _formed(self, batch: Batch, trial: Plan) -> tuple[Iterator[tuple[str, Tensor | None]], set[nn.Module]]:
        """What the hooks make of every parameter, ``None`` where they cannot tell samples apart; and the layers they saw."""
        calls, size = self._calls(batch, trial)[1], batch_size(batch)
        each = (
            (name, None if shares is None else self._whole(name, shares, size))
            for name, shares in self._shares(calls, trial, size)
        )
        return each, {module for (module, _, _), delta in calls if delta is not None}


def _noted(module: nn.Module, names: dict[str, str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Noted:
    return module, names, noted(module, set(names), args, kwargs)


def _close(row: Tensor, wanted: Tensor, scale: float) -> bool:
    """Equal but for rounding, which half precision does a lot of."""
    tolerance = max(1e-3, 10 * torch.finfo(wanted.dtype).eps)
    error, size = float((row - wanted).norm()), float(wanted.norm())
    return error <= tolerance * size + 1e-2 * tolerance * scale
