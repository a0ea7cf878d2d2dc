"""Gradients of every sample for parameters that no hook sees."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from diffin.batches import Batch, batch_size, select
from diffin.derivatives.composite import composite_attention
from diffin.derivatives.gradient import gradient_of
from diffin.memory import is_out_of_memory
from diffin.task import PerSampleLoss
from diffin.vectors import Vector

_log = logging.getLogger(__name__)

_UNVECTORISED = (RuntimeError, ValueError, TypeError, NotImplementedError, IndexError, KeyError, AttributeError)
"""What vmap raises where a model branches on its data, changes tensors in place, or takes something that is no tensor."""


class WithoutHooks:
    """Gradients of per-sample losses by ``vmap(grad)``, or by a backward pass for each where that does not work.

    Args:
        loss: the losses as a function of the studied parameters.
        point: where.
    """

    def __init__(self, loss: PerSampleLoss, point: Vector) -> None:
        self._loss = loss
        self._point = point
        self._vectorised = True

    def rows(self, batch: Batch, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """Each of the parameters with its rows, Float[Tensor, "B *shape"].

        A pass takes as many of them as need no more memory than the largest alone.
        """
        limit = max((self._point[name].numel() for name in names), default=0)
        group: list[str] = []
        for name in names:
            if sum(self._point[other].numel() for other in (*group, name)) > limit:
                yield from self._emptied(batch, group)
                group = []
            group.append(name)
        if group:
            yield from self._emptied(batch, group)

    def _emptied(self, batch: Batch, names: list[str]) -> Iterator[tuple[str, Tensor]]:
        rows = self._together(batch, names)
        for name in names:
            yield name, rows.pop(name)

    def _together(self, batch: Batch, names: list[str]) -> Vector:
        if self._vectorised:
            try:
                return self._by_vmap(batch, names)
            except _UNVECTORISED as error:
                if isinstance(error, RuntimeError) and is_out_of_memory(error):
                    raise
                self._vectorised = False
                _log.info("per-sample gradients of %s go one by one: %s", names[0], str(error).split("\n")[0])
        rows = {name: self._point[name].new_empty(batch_size(batch), *self._point[name].shape) for name in names}
        for index in range(batch_size(batch)):
            one = select(batch, slice(index, index + 1))
            for name, found in gradient_of(self._loss, self._point, one, names).items():
                rows[name][index] = found
        return rows

    def _by_vmap(self, batch: Batch, names: list[str]) -> Vector:
        fixed = {name: t for name, t in self._point.items() if name not in names}
        moving = {name: self._point[name] for name in names}
        device = next(iter(moving.values())).device

        def loss(parameters: Vector, index: Tensor) -> Tensor:
            return self._loss({**fixed, **parameters}, select(batch, index.unsqueeze(0))).sum()

        with composite_attention():
            each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))
            rows: Vector = each(moving, torch.arange(batch_size(batch), device=device))
        return {name: t.detach() for name, t in rows.items()}
