"""What every action asks of its arguments before it begins."""

from __future__ import annotations

from diffin.batches import digest
from diffin.errors import DatasetError, DiffinError
from diffin.sources import Source
from diffin.task import Task
from diffin.trajectory import Trajectory

_DIGESTED = 4096
"""Elements of each tensor of a state that tell it from others."""


def end_of(trajectory: Trajectory) -> str:
    """Tells one recorded training from another, by its last state."""
    return digest((trajectory.final or trajectory.stored[-1]).state, most=_DIGESTED)


def check_run(task: object, trajectory: object, train: Source) -> None:
    """Refuse a training set of another size than that of the run: its samples would be taken for others.

    Args:
        task: of the run.
        trajectory: what training left behind, or ``None`` for none.
        train: what is given for its training set. A stream, whose length is not known, is taken at its word.

    Raises:
        DiffinError: task or trajectory are something else.
        DatasetError: the sizes differ.
    """
    if not isinstance(task, Task):
        raise DiffinError(f"task is a {type(task).__name__}: pass e.g. diffin.tasks.Classification(model)")
    if trajectory is None:
        return
    if not isinstance(trajectory, Trajectory):
        raise DiffinError(f"trajectory is a {type(trajectory).__name__}: pass diffin.Trajectory.open(folder)")
    recorded = trajectory.dataset_size
    if recorded is not None and train.length is not None and recorded != train.length:
        raise DatasetError(
            f"trajectory was recorded on {recorded} samples and the training set holds {train.length}; pass the set that it "
            "was trained on"
        )
