"""The gradient of a mean loss, streamed over batches."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from diffin import vectors
from diffin.batches import Batch, select
from diffin.errors import DerivativeError
from diffin.task import PerSampleLoss
from diffin.vectors import Vector

_log = logging.getLogger(__name__)

_T = TypeVar("_T")


@dataclass(frozen=True)
class SampleSet:
    """Samples that can be read again and again, batch by batch.

    Attributes:
        read: starts reading.
        name: what to call the set in messages.
        skip_failed: leave out samples whose loss is not finite, with a warning, instead of refusing the set: one sample of
            a training set may be broken; a query has to be whole.
    """

    read: Callable[[], Iterable[Batch]]
    name: str
    skip_failed: bool = False


@dataclass(frozen=True)
class MeanLoss:
    """A mean loss over a set, and its gradient.

    Attributes:
        value: the mean loss.
        gradient: of that mean, by parameter name.
        count: the number of samples.
    """

    value: float
    gradient: Vector
    count: int


def mean_gradient(loss: PerSampleLoss, samples: SampleSet, *, at: Mapping[str, Tensor] | None = None) -> MeanLoss:
    """Mean loss and its gradient over a set, one batch in memory at a time.

    Args:
        loss: the losses as a function of the parameters.
        samples: the set.
        at: where, and with respect to what: parameters, and buffers if wanted; ``loss.parameters`` by default.

    Raises:
        DerivativeError: a loss is not finite, or the set is empty.
    """
    point = leaves(at or loss.parameters)
    total = vectors.zeros_like(point)
    value, count = 0.0, 0
    for losses in finite_losses(loss, point, samples):
        gradients = torch.autograd.grad(losses.sum(), list(point.values()), allow_unused=True)
        add_gradients(total, gradients)
        value += float(losses.detach().sum())
        count += len(losses)
    return MeanLoss(value / count, vectors.scale(total, 1 / count), count)


def leaves(point: Mapping[str, Tensor]) -> Vector:
    """The same values as the leaves of a new graph."""
    return {name: t.detach().requires_grad_() for name, t in point.items()}


def add_gradients(total: Vector, gradients: Iterable[Tensor | None]) -> None:
    """``total += gradients``, in the order of ``total``; ``None`` stands for zero."""
    for tensor, gradient in zip(total.values(), gradients, strict=True):
        if gradient is not None:
            tensor.add_(gradient)


def finite_losses(loss: PerSampleLoss, point: Mapping[str, Tensor], samples: SampleSet) -> Iterator[Tensor]:
    """The losses of the set at ``point``, batch by batch, with their graph; see :func:`finite`."""

    def taken(batch: Batch) -> tuple[Tensor, None]:
        with torch.enable_grad():
            return loss(point, batch), None

    return (losses for losses, _ in finite(loss, samples, taken))


def finite(
    loss: PerSampleLoss, samples: SampleSet, taken: Callable[[Batch], tuple[Tensor, _T]]
) -> Iterator[tuple[Tensor, _T]]:
    """What is taken of every batch of the set with its losses, samples whose loss is not finite left out.

    Raises:
        DerivativeError: there is no sample, or one whose loss is not finite in a set that has to be whole.
    """
    position = count = failed = 0
    for batch in samples.read():
        batch = loss.to_device(batch)
        losses, found = taken(batch)
        size, usable = len(losses), torch.isfinite(losses)
        if not bool(usable.all()):
            if not samples.skip_failed:
                raise DerivativeError(
                    f"{int((~usable).sum())} losses of {samples.name} are not finite (sample "
                    f"{position + int(torch.nonzero(~usable)[0])} of it first); remove those samples, or clamp what "
                    "overflows in Task.losses"
                )
            failed += int((~usable).sum())
            # Without them from the start: a zero weight times an infinite derivative would be NaN.
            losses = losses[:0]
            if bool(usable.any()):
                losses, found = taken(select(batch, usable.nonzero().flatten()))
        if len(losses):
            yield losses, found
        position += size
        count += len(losses)
    if failed:
        _log.warning("%d samples of %s have a loss that is not finite and were left out", failed, samples.name)
    if count == 0:
        raise DerivativeError(f"{samples.name} is empty, or no loss in it is finite; pass at least one usable sample")
