"""When to store a checkpoint: at steps known in advance, or ever sparser while the end of the training is unknown."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from operator import index
from typing import Any

import numpy as np

from diffin.errors import RecordingError


@dataclass(frozen=True)
class LogSpaced:
    """``count`` checkpoints, the gaps between them growing geometrically: dense early, where training moves fastest.

    Needs ``total_steps`` of the :class:`~diffin.trajectory.Recorder`.
    """

    count: int

    def __post_init__(self) -> None:
        _check_count(self.count, "LogSpaced(count)")


class Schedule(ABC):
    """Which states become checkpoints. A pure function of the number of steps taken, so that a resumed run agrees."""

    @abstractmethod
    def includes(self, step: int) -> bool:
        """Whether the state after ``step`` steps becomes a checkpoint."""

    def keeps(self, step: int, taken: int) -> bool:
        """Whether the checkpoint of ``step`` is still wanted when ``taken`` steps were taken."""
        del taken
        return True

    @abstractmethod
    def to_json(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class ChosenSteps(Schedule):
    """Checkpoints at these steps."""

    steps: tuple[int, ...]
    _members: frozenset[int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_members", frozenset(self.steps))

    def includes(self, step: int) -> bool:
        return step in self._members

    def to_json(self) -> dict[str, Any]:
        return {"kind": "chosen", "steps": list(self.steps)}


@dataclass(frozen=True)
class Thinning(Schedule):
    """Checkpoints at the multiples of a stride, which doubles before more than ``2 * minimum`` are kept.

    After any number of steps from ``minimum`` on, between ``minimum`` and ``2 * minimum`` evenly spaced ones are kept.
    """

    minimum: int

    def stride(self, taken: int) -> int:
        """The smallest power of two of which at most ``2 * minimum`` positive multiples are at most ``taken``."""
        return 1 << (taken // (2 * self.minimum + 1)).bit_length()

    def includes(self, step: int) -> bool:
        return step > 0 and step % self.stride(step) == 0

    def keeps(self, step: int, taken: int) -> bool:
        return step % self.stride(taken) == 0

    def to_json(self) -> dict[str, Any]:
        return {"kind": "thinning", "minimum": self.minimum}


def plan(checkpoints: int | LogSpaced | Iterable[int], total_steps: int | None) -> Schedule:
    """Turn the argument ``checkpoints`` of the recorder into a schedule.

    Raises:
        RecordingError: the numbers make no schedule.
    """
    if total_steps is not None:
        _check_count(total_steps, "total_steps")
    if isinstance(checkpoints, LogSpaced):
        if total_steps is None:
            raise RecordingError(
                f"checkpoints={checkpoints!r} needs the length of the training: pass total_steps, or a number of "
                "checkpoints, which works without"
            )
        return ChosenSteps(log_spaced(checkpoints.count, total_steps))
    if isinstance(checkpoints, (int, np.integer)):
        count = _check_count(checkpoints, "checkpoints")
        return Thinning(count) if total_steps is None else ChosenSteps(segment_midpoints(count, total_steps))
    return ChosenSteps(_explicit(checkpoints, total_steps))


def segment_midpoints(count: int, total_steps: int) -> tuple[int, ...]:
    """``floor((j + 1/2) T / count)``: the middle of each of ``count`` equal segments; every step if there are fewer."""
    count = min(count, total_steps)
    return tuple((2 * j + 1) * total_steps // (2 * count) for j in range(count))


def log_spaced(count: int, total_steps: int) -> tuple[int, ...]:
    """``count`` distinct steps from 0 to ``total_steps - 1`` whose successors grow geometrically."""
    count = min(count, total_steps)
    wanted = np.rint(np.geomspace(1, total_steps, count)).astype(np.int64) - 1
    steps: list[int] = []
    for position, step in enumerate(wanted.tolist()):
        # Early on the geometric gaps are below one step: take the next free one, and leave room for those to come.
        lowest = steps[-1] + 1 if steps else 0
        steps.append(min(max(step, lowest), total_steps - count + position))
    return tuple(steps)


def _explicit(checkpoints: Iterable[int], total_steps: int | None) -> tuple[int, ...]:
    try:
        steps = sorted({index(step) for step in checkpoints})
    except TypeError as error:
        raise RecordingError(
            f"checkpoints={checkpoints!r} is neither a number, LogSpaced(number), nor a sequence of step numbers: "
            f"{error}"
        ) from None
    if not steps:
        raise RecordingError("checkpoints is an empty sequence: pass at least one step number, or how many to take")
    if steps[0] < 0:
        raise RecordingError(f"checkpoints contains {steps[0]}: step numbers count the steps taken before, from 0 on")
    if total_steps is not None and steps[-1] >= total_steps:
        raise RecordingError(
            f"checkpoints contains {steps[-1]}, but with total_steps={total_steps} no step follows that state: "
            f"use step numbers below {total_steps} (the final state is stored anyway)"
        )
    return tuple(steps)


def _check_count(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise RecordingError(f"{name}={value!r} must be a whole number of at least 1")
    return int(value)
