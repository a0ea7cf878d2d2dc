"""Is the change small enough for the estimate to mean something? Measured, along the way from the original parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from diffin import vectors
from diffin.actions.delete.linearised import linearised_losses
from diffin.derivatives.gradient import SampleSet, mean_gradient
from diffin.errors import DerivativeError
from diffin.task import PerSampleLoss, Task, frozen
from diffin.vectors import Vector

FRACTIONS = (0.25, 0.5, 1.0)

LARGEST_SLIP = 0.03
"""By how much the loss of kept samples may rise, as a share of what training took off it."""


@dataclass(frozen=True)
class Regime:
    """Losses along the displacement, as the linearised network predicts them and as they are.

    Where a model cannot be linearised, the prediction is that of first order, by the gradient.

    Attributes:
        fractions: of the displacement.
        predicted: mean loss on the forgotten samples, by fraction, of the linearised network.
        actual: the same of the real network.
        kept_predicted: mean loss on kept samples.
        kept_actual: the same of the real network.
        kept_before: mean loss on the same kept samples before anything was changed.
        slip: ``kept_actual - kept_before`` at the whole displacement, 0 where it fell: training without samples hardly raises
            the loss of others, but an estimate used beyond its reach does.
        allowed: the largest slip that is accepted.
    """

    fractions: tuple[float, ...]
    predicted: tuple[float, ...]
    actual: tuple[float, ...]
    kept_predicted: tuple[float, ...]
    kept_actual: tuple[float, ...]
    kept_before: float
    slip: float
    allowed: float

    @property
    def holds(self) -> bool:
        """Whether the model is whole: false also where a loss is not a number."""
        return self.slip <= self.allowed

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "holds": self.holds}


def regime(
    task: Task,
    state: Mapping[str, Tensor],
    delta: Vector,
    forgotten: SampleSet,
    kept: SampleSet,
    *,
    allowed: float,
) -> Regime:
    """Measure it.

    Args:
        task: model and loss.
        state: the original.
        delta: the displacement, of the studied parameters.
        forgotten: the samples to delete.
        kept: some of the others.
        allowed: see :class:`Regime`.
    """
    with frozen(task.model):
        loss = PerSampleLoss(task, state, list(delta))
        predicted, actual = _along(loss, delta, forgotten)
        kept_predicted, kept_actual = _along(loss, delta, kept)
        before = _mean(loss, loss.parameters, kept)
    slip = kept_actual[-1] - before
    return Regime(
        FRACTIONS, predicted, actual, kept_predicted, kept_actual, before,
        max(slip, 0.0) if math.isfinite(slip) else math.inf, allowed,
    )  # fmt: skip


def learned(task: Task, first: Mapping[str, Tensor], last: Mapping[str, Tensor], samples: SampleSet) -> float:
    """What training took off the mean loss of the samples."""
    with frozen(task.model):
        losses = [PerSampleLoss(task, state) for state in (first, last)]
        start, end = (_mean(loss, loss.parameters, samples) for loss in losses)
    return start - end


def _along(loss: PerSampleLoss, delta: Vector, samples: SampleSet) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean losses at the fractions: of the linearised network, and of the real one."""
    displacements = [vectors.scale(delta, fraction) for fraction in FRACTIONS]
    actual = tuple(_mean(loss, vectors.add(loss.parameters, d), samples) for d in displacements)
    try:
        return tuple(_mean_linearised(loss, d, samples) for d in displacements), actual
    except DerivativeError:
        found = mean_gradient(loss, samples)
        return tuple(found.value + vectors.dot(found.gradient, d) for d in displacements), actual


def _mean_linearised(loss: PerSampleLoss, delta: Vector, samples: SampleSet) -> float:
    found = [linearised_losses(loss, delta, loss.to_device(batch)).double() for batch in samples.read()]
    return float(torch.cat(found).mean())


def _mean(loss: PerSampleLoss, point: Vector, samples: SampleSet) -> float:
    with torch.no_grad():
        found = [loss(point, loss.to_device(batch)).double() for batch in samples.read()]
    return float(torch.cat(found).mean())
