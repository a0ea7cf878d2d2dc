"""What an estimator is: (task, trajectory, query) -> probes, one checkpoint at a time."""

from __future__ import annotations

import atexit
import logging
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from diffin import vectors
from diffin.batches import digest
from diffin.derivatives.gradient import Batches, mean_gradient
from diffin.errors import DatasetError, TrajectoryError
from diffin.probes import CheckpointProbes, Probe, ProbeSet, ProbeWriter
from diffin.progress import phase
from diffin.sources import Source, open_source
from diffin.task import PerSampleLoss, Task, check_losses, frozen
from diffin.trajectory import Checkpoint, Trajectory
from diffin.vectors import Vector

_log = logging.getLogger(__name__)

_FINGERPRINTED = 64


@dataclass(frozen=True)
class Moment:
    """What an estimator sees of one checkpoint. Gradients and products are of the losses *there*.

    Attributes:
        loss: per-sample losses as a function of the studied parameters.
        step: steps taken before the checkpoint (t).
        total_steps: steps of the whole run (T).
        checkpoints: how many the estimator is built from (m).
        dataset_size: N, the number of samples the run was trained on.
        learning_rates: of the step after the checkpoint, by parameter name, times the clipping coefficient of that step.
        query: the query set, or ``None`` for an estimator that asks about the training risk.
        draw: ``draw(size, *key)``: the whole training set for ``None``, else ``size`` samples of it, drawn without
            replacement by a generator seeded with the key; one draw per key, whatever else is drawn.
    """

    loss: PerSampleLoss
    step: int
    total_steps: int
    checkpoints: int
    dataset_size: int
    learning_rates: dict[str, float]
    query: Batches | None
    draw: Callable[..., Batches]

    def rated(self, vector: Vector) -> Vector:
        """The vector with every parameter multiplied by its learning rate."""
        return vectors.scale(vector, self.learning_rates)

    def query_gradient(self) -> Vector:
        """g_V: the gradient of the mean loss of the query set."""
        assert self.query is not None  # build_probes has refused by now
        return mean_gradient(self.loss, self.query, what="the query set").gradient


@dataclass(frozen=True)
class Estimator(ABC):
    """An estimator: a frozen dataclass of its settings that knows the probes of a checkpoint."""

    name: ClassVar[str]
    needs_query: ClassVar[bool] = True

    @abstractmethod
    def probes(self, at: Moment) -> tuple[Probe, ...]:
        """The probes of one checkpoint; the influence of a sample is the sum over all of all checkpoints."""

    def describe(self) -> dict[str, Any]:
        """JSON-able: the name and the settings."""
        return {"name": self.name, **asdict(self)}


def build_probes(
    task: Task,
    trajectory: Trajectory,
    train_dataset: Any,
    *,
    query: Any = None,
    estimator: Estimator,
    parameters: Sequence[str] | str | None = None,
    output: str | Path | None = None,
    batch_size: int = 256,
    workers: int = 0,
    collate: Callable[[list[Any]], Any] | None = None,
    progress: bool = True,
) -> ProbeSet:
    """Build the probes of every checkpoint of a trajectory.

    This is the half that takes gradients, and it touches only the query set and the curvature set. Interrupted, it goes
    on with the first checkpoint that is not complete in ``output``.

    Args:
        task: model and loss; the model is read, never written.
        trajectory: what training left behind.
        train_dataset: what the run was trained on; curvature sets are drawn from it.
        query: the samples whose mean loss is asked about, usually a clean validation set.
        estimator: what to estimate with.
        parameters: name patterns of the parameters to study; ``None`` for all that training could change.
        output: folder for the probes; a temporary one, removed at exit, by default.
        batch_size: samples per gradient pass.
        workers: processes that read the data.
        collate: makes a batch of a list of samples; the DataLoader's default otherwise.
        progress: show a bar with the time left.

    Raises:
        TaskError: the task's losses cannot be used (see :func:`diffin.task.check_losses`).
        TrajectoryError: there is no checkpoint to measure at, or it does not fit the model.
        DatasetError: a data set is empty or too small.
    """
    if not trajectory.checkpoints:
        raise TrajectoryError(
            "the trajectory has no checkpoint with a step after it; record at least one before training ends"
        )
    train = open_source(train_dataset, collate=collate, workers=workers)
    if estimator.needs_query and query is None:
        raise DatasetError(
            f"query=None: {type(estimator).__name__} needs the samples whose loss is asked about, e.g. a validation set"
        )
    asked = open_source(query, collate=collate, workers=workers) if estimator.needs_query else None
    size = _dataset_size(trajectory, train)
    for source in (train, asked):
        if source is not None:
            check_losses(task, next(iter(source.batches(8)))[1])
    _warn_about_the_optimizer(trajectory, estimator)

    def read(source: Source) -> Batches:
        return lambda: (batch for _, batch in source.batches(batch_size))

    with frozen(task.model):
        names = PerSampleLoss(task, parameters=parameters).names
    metadata = {
        "estimator": estimator.describe(),
        "dataset_size": size,
        "query_size": None if asked is None else asked.length,
        "total_steps": trajectory.total_steps,
        "optimizer": trajectory.optimizer.kind if trajectory.optimizer is not None else None,
        "batch_size": batch_size,
        "data": {"train": _fingerprint(train), "query": None if asked is None else _fingerprint(asked)},
        "states": {checkpoint.step: digest(checkpoint.state, most=4096) for checkpoint in trajectory.checkpoints},
    }
    folder = Path(output) if output is not None else _temporary_folder()
    writer = ProbeWriter(folder, names, metadata)
    drawn = _Draws(train, size, batch_size)
    with phase("building probes", len(trajectory.checkpoints), show=progress) as bar:
        for checkpoint in trajectory.checkpoints:
            if not writer.has(checkpoint.step):
                state = checkpoint.state
                with frozen(task.model):
                    moment = Moment(
                        loss=PerSampleLoss(task, state, names),
                        step=checkpoint.step,
                        total_steps=trajectory.total_steps,
                        checkpoints=len(trajectory.checkpoints),
                        dataset_size=size,
                        learning_rates=_effective_rates(trajectory, checkpoint, names),
                        query=None if asked is None else read(asked),
                        draw=drawn,
                    )
                    probes = estimator.probes(moment)
                writer.write(CheckpointProbes(checkpoint.step, state, probes))
            bar.advance()
    return writer.finish([checkpoint.step for checkpoint in trajectory.checkpoints])


@dataclass(frozen=True)
class _Draws:
    """Samples of the training set by key, so that every draw is the same in every run and on every machine."""

    train: Source
    dataset_size: int
    batch_size: int

    def __call__(self, size: int | None, *key: int) -> Batches:
        source = self.train
        if size is not None and size < self.dataset_size:
            generator = np.random.default_rng(key)
            source = source.select(generator.choice(self.dataset_size, size, replace=False))
        return lambda: (batch for _, batch in source.batches(self.batch_size))


def _fingerprint(source: Source) -> str:
    """Identifies a data set by its length and its first samples."""
    _, batch = next(iter(source.batches(_FINGERPRINTED)))
    return f"{source.length}-{digest(batch)}"


def _dataset_size(trajectory: Trajectory, train: Source) -> int:
    recorded, length = trajectory.dataset_size, train.length
    if recorded is None and length is None:
        raise DatasetError(
            "the training set has no known length and the trajectory does not say how many samples the run used; "
            "pass dataset_size= to Trajectory.from_checkpoints"
        )
    if recorded is not None and length is not None and recorded != length:
        _log.warning(
            "the run was trained on %d samples and %d are given; the scale of the influence is that of the run, and "
            "curvature sets are drawn from what is given", recorded, length,
        )  # fmt: skip
    return min(recorded, length) if recorded and length else (recorded or length or 0)


def _effective_rates(trajectory: Trajectory, checkpoint: Checkpoint, names: list[str]) -> dict[str, float]:
    """Learning rates of the step after the checkpoint, times its clipping coefficient: what a gradient was multiplied by."""
    rates = checkpoint.learning_rates(names)
    if trajectory.steps is None:
        return rates
    coefficient = trajectory.steps.clip_coefficient(checkpoint.step)
    return {name: rate * coefficient for name, rate in rates.items()}


def _warn_about_the_optimizer(trajectory: Trajectory, estimator: Estimator) -> None:
    optimizer = trajectory.optimizer
    if optimizer is not None and not optimizer.is_plain_sgd:
        _log.warning(
            "%s is derived for SGD without momentum; the run used %s, so read the scores as those of SGD at the same "
            "parameters and learning rates", type(estimator).__name__, optimizer.summary,
        )  # fmt: skip


def _temporary_folder() -> Path:
    """A folder that lasts as long as the process."""
    folder = tempfile.TemporaryDirectory(prefix="diffin-probes-")
    atexit.register(folder.cleanup)
    return Path(folder.name)
