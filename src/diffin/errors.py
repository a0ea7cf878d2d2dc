"""Every error diffin raises on purpose. Each message names the argument, its value, and what to pass instead."""

from __future__ import annotations


class DiffinError(Exception):
    """Base of all errors raised by diffin."""


class TaskError(DiffinError, ValueError):
    """A task does not return what a task must: one finite, independent, repeatable loss per sample."""


class RecordingError(DiffinError, RuntimeError):
    """A training loop did something that the recorder cannot write down faithfully."""


class TrajectoryError(DiffinError, ValueError):
    """A trajectory is missing, damaged, or does not fit the model or the question."""


class ProbeError(DiffinError, ValueError):
    """Probes are missing, damaged, or were built for something else."""


class DerivativeError(DiffinError, RuntimeError):
    """A derivative cannot be taken, or not accurately enough."""


class ScoringError(DiffinError, RuntimeError):
    """Scoring cannot go on, or an existing output belongs to another run."""


class EvaluationError(DiffinError, RuntimeError):
    """A ground truth cannot be computed, or an existing output belongs to another one."""


class DeletionError(DiffinError, RuntimeError):
    """Samples cannot be deleted from a model: what that takes is beyond the reach of the estimate."""


class DatasetError(DiffinError, ValueError):
    """A dataset is empty, yields batches of no known size, or changed its length."""


class UnreadableError(DatasetError):
    """A sample, or the file that it is in, cannot be read. Scoring goes on without it.

    Args:
        reason: why, in one line; it stands beside the sample in the results, so it does not name the sample.
        message: what to say where that is not enough; ``None`` for the reason.
    """

    def __init__(self, reason: str, message: str | None = None) -> None:
        super().__init__(reason if message is None else message)
        self.reason = reason

    def __reduce__(self) -> tuple[type[UnreadableError], tuple[str, str]]:
        return type(self), (self.reason, str(self))


class ProblemError(DiffinError, ValueError):
    """A problem file cannot be read or does not define what it must."""


class MissingDependencyError(DiffinError, ImportError):
    """An optional dependency is needed for what was asked."""
