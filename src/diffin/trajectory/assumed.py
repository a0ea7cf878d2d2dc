"""A step log of a training that was not recorded: what is known of some steps, and taken to hold for those in between."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from diffin.trajectory.steps import FloatArray, IntArray, StepLog


class AssumedLog(StepLog):
    """A step log of what was not written down step by step.

    Args:
        learning_rates: Float64[ndarray, "steps groups"].
        clip_coefficients: Float64[ndarray, "steps"].
        constants: of the parameter groups, by the step from which they hold; 0 is among them.
    """

    def __init__(
        self, learning_rates: FloatArray, clip_coefficients: FloatArray, constants: Mapping[int, list[dict[str, Any]]]
    ) -> None:
        super().__init__(None, learning_rates.shape[1])
        steps = len(learning_rates)
        self.learning_rates, self.clip_coefficients = learning_rates, clip_coefficients
        self.skipped = np.zeros(steps, dtype=bool)
        self._clippings = np.full((steps, 2), np.nan)
        self._constants = dict(constants)
        self._changes = np.array(sorted(constants), dtype=np.int64)

    def indices(self, step: int) -> IntArray | None:
        """Unknown."""
        self._check(step)
        return None

    def micro_batches(self, step: int) -> tuple[int, ...] | None:
        """Unknown."""
        self._check(step)
        return None

    def randomness(self, step: int) -> tuple[bytes | None, ...] | None:
        """Unknown."""
        self._check(step)
        return None

    def steps_without_indices(self) -> IntArray:
        """All."""
        return np.arange(len(self))


def first_rate(points: Mapping[int, float], base: float, *, from_zero: bool) -> float:
    """Rate of the first step: where rates rise at first they do so along a line; else it is what the schedule begins with."""
    steps = sorted(points)
    if len(steps) > 1 and points[steps[1]] > points[steps[0]] > 0:
        if from_zero:
            return 0.0
        slope = (points[steps[1]] - points[steps[0]]) / (steps[1] - steps[0])
        return max(0.0, points[steps[0]] - slope * steps[0])
    return base


def line(points: Mapping[int, float], total: int) -> FloatArray:
    """Linear between known steps, constant beyond them. Float64[ndarray, "steps"]."""
    steps = sorted(points)
    result: FloatArray = np.interp(np.arange(total), steps, [points[step] for step in steps])
    return result
