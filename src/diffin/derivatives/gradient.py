"""The gradient of a mean loss, streamed over batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from diffin import vectors
from diffin.batches import Batch
from diffin.errors import DerivativeError
from diffin.task import PerSampleLoss
from diffin.vectors import Vector

Batches = Callable[[], Iterable[Batch]]
"""A set of samples that can be read again and again, batch by batch."""


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


def mean_gradient(
    loss: PerSampleLoss, batches: Batches, *, at: Mapping[str, Tensor] | None = None, what: str = "the set"
) -> MeanLoss:
    """Mean loss and its gradient over all batches, one batch in memory at a time.

    Args:
        loss: the losses as a function of the parameters.
        batches: the samples.
        at: where; ``loss.parameters`` by default.
        what: the name of the set in error messages.

    Raises:
        DerivativeError: a loss is not finite, or the set is empty.
    """
    point = {name: t.detach().requires_grad_() for name, t in (at or loss.parameters).items()}
    total = vectors.zeros_like(loss.parameters)
    value, count = 0.0, 0
    for batch in batches():
        with torch.enable_grad():
            losses = loss(point, loss.to_device(batch))
            refuse_nonfinite(losses, count, what)
            gradients = torch.autograd.grad(losses.sum(), list(point.values()), allow_unused=True)
        for tensor, gradient in zip(total.values(), gradients, strict=True):
            if gradient is not None:
                tensor.add_(gradient)
        value += float(losses.detach().sum())
        count += len(losses)
    if count == 0:
        raise DerivativeError(f"{what} is empty; a mean gradient needs at least one sample")
    return MeanLoss(value / count, vectors.scale(total, 1 / count), count)


def refuse_nonfinite(losses: Tensor, offset: int, what: str) -> None:
    """Raise if a loss is not finite: one such sample would spoil the gradient of the whole set."""
    finite = torch.isfinite(losses)
    if not bool(finite.all()):
        first = offset + int(torch.nonzero(~finite)[0])
        raise DerivativeError(
            f"{int((~finite).sum())} losses of {what} are not finite (sample {first} of it first); "
            "remove those samples, or clamp what overflows in Task.losses"
        )
