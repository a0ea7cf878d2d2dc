"""The gradient of a mean loss, streamed over batches."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor

from diffin import vectors
from diffin.batches import Batch, select
from diffin.errors import DerivativeError
from diffin.parallel import ALONE, Ranks
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
        ranks: the processes that add up what they find of the set, each of a share of it.
        share: starts reading the share of this process; ``None`` to take one batch in so many as there are processes.
    """

    read: Callable[[], Iterable[Batch]]
    name: str
    skip_failed: bool = False
    ranks: Ranks = ALONE
    share: Callable[[], Iterable[Batch]] | None = None

    def own(self) -> Iterable[Batch]:
        """The batches that this process looks at; all of them where it is alone."""
        if self.share is not None:
            return self.share()
        return islice(self.read(), self.ranks.rank, None, self.ranks.count)

    def summed(self, totals: Sequence[Vector], count: int, value: float = 0.0) -> tuple[list[Vector], int, float]:
        """What every process has summed over ``count`` samples of its own, added up.

        Raises:
            DerivativeError: there was no sample.
        """
        if self.ranks.count > 1:
            some = next(iter(totals[0].values()))
            numbers = torch.tensor([count, value], dtype=torch.float64, device=some.device)
            count, value = self.ranks.summed({"": numbers})[""].tolist()
            totals = [self.ranks.summed(total) for total in totals]
        if not count:
            raise DerivativeError(f"{self.name} is empty, or no loss in it is finite; pass at least one usable sample")
        return list(totals), int(count), value


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
    (total,), count, value = samples.summed([total], count, value)
    return MeanLoss(value / count, vectors.scale(total, 1 / count), count)


def leaves(point: Mapping[str, Tensor]) -> Vector:
    """The same values as the leaves of a new graph."""
    return {name: t.detach().requires_grad_() for name, t in point.items()}


def gradient_of(loss: PerSampleLoss, point: Vector, batch: Batch, names: Sequence[str]) -> Vector:
    """The gradient of the sum of the losses of a batch, by those parameters; zero where they have no part in it."""
    at = leaves(point)
    with torch.enable_grad():
        found = torch.autograd.grad(loss(at, batch).sum(), [at[name] for name in names], allow_unused=True)
    return {name: torch.zeros_like(at[name]) if g is None else g for name, g in zip(names, found, strict=True)}


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

    Of a set that is shared, the batches of this process; whatever is summed over them, :meth:`SampleSet.summed` adds up.

    Raises:
        DerivativeError: there is a sample whose loss is not finite in a set that has to be whole.
    """
    position = failed = 0
    whose = f"the share of rank {samples.ranks.rank}" if samples.ranks.count > 1 else "it"
    for batch in samples.own():
        batch = loss.to_device(batch)
        losses, found = taken(batch)
        size, usable = len(losses), torch.isfinite(losses)
        if not bool(usable.all()):
            if not samples.skip_failed:
                raise DerivativeError(
                    f"{int((~usable).sum())} losses of {samples.name} are not finite (sample "
                    f"{position + int(torch.nonzero(~usable)[0])} of {whose} first); remove those samples, or clamp what "
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
    if failed:
        _log.warning("%d samples of %s have a loss that is not finite and were left out", failed, samples.name)
