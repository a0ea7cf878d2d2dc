"""Building the probes of a whole trajectory, resumable checkpoint by checkpoint."""

from __future__ import annotations

import logging
import tempfile
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffin.batches import digest
from diffin.derivatives.gradient import SampleSet
from diffin.errors import DatasetError, DiffinError, TrajectoryError
from diffin.estimators.base import LocalEstimator, ProbingEstimator, Run, effective_rates
from diffin.probes import ProbeSet, ProbeWriter
from diffin.progress import phase
from diffin.sample import Sample
from diffin.sources import Source, open_source
from diffin.task import PerSampleLoss, Task, frozen
from diffin.trajectory import Checkpoint, Trajectory

_log = logging.getLogger(__name__)


def build_probes(
    task: Task,
    trajectory: Trajectory,
    train_dataset: Any,
    *,
    query: Any = None,
    estimator: ProbingEstimator,
    parameters: Sequence[str] | str | None = None,
    output: str | Path | None = None,
    batch_size: int = 256,
    workers: int = 0,
    collate: Callable[[list[Any]], Any] | None = None,
    progress: bool = True,
) -> ProbeSet:
    """Build the probes of a trajectory.

    This is the half that takes gradients: of the query set and a curvature set or, where `Unrolled` goes by steps, of every
    batch that was trained on. Interrupted, it goes on with what is complete in ``output``.

    Args:
        task: model and loss; the model is read, never written.
        trajectory: what training left behind.
        train_dataset: what the run was trained on; curvature sets are drawn from it, without samples whose loss is not
            finite.
        query: the samples whose mean loss is asked about, usually a clean validation set. An estimator that asks about the
            training risk (MoSo) takes none.
        estimator: what to estimate with.
        parameters: name patterns of the parameters to study; ``None`` for all that training could change.
        output: folder for the probes; a temporary one, which lasts as long as the returned object, by default.
        batch_size: samples per gradient pass. Probes depend on it by rounding only.
        workers: processes that read the data.
        collate: makes a batch of a list of samples; the DataLoader's default otherwise.
        progress: show a bar with the time left.

    Raises:
        TaskError: the task's losses cannot be used (see :func:`diffin.task.check_losses`).
        TrajectoryError: there is no checkpoint to measure at, or it does not fit the model.
        DatasetError: a data set is empty, or no loss in it is finite.
        DerivativeError: a loss of the query is not finite, or the model has no second derivative.
        ProbeError: ``output`` holds the probes of another run, or cannot be written.
    """
    check_types(task, trajectory, estimator)
    train = open_source(train_dataset, collate=collate, workers=workers)
    if estimator.needs_query and query is None:
        raise DatasetError(
            f"query=None: {type(estimator).__name__} needs the samples whose loss is asked about, e.g. a validation set"
        )
    asked = open_source(query, collate=collate, workers=workers) if estimator.needs_query else None
    size = known_size(trajectory, train)
    samples = {
        "train": usable_samples(task, train, "training"),
        "query": None if asked is None else usable_samples(task, asked, "query"),
    }
    # After the losses were looked at: deciding may take some steps of the training.
    estimator = estimator.resolved(task, trajectory, train)
    warn_about_the_optimizer(trajectory, estimator)
    with frozen(task.model):
        names = PerSampleLoss(task, trajectory.checkpoints[0].state, parameters).names
    steps = estimator.steps(trajectory)
    rates = {c.step: effective_rates(trajectory, c, names) for c in trajectory.checkpoints}
    metadata = {
        "estimator": estimator.describe(),
        "terms": "draws" if isinstance(estimator, LocalEstimator) else "parts",
        "dataset_size": size,
        "query_size": None if asked is None else asked.length,
        "total_steps": trajectory.total_steps,
        "optimizer": trajectory.optimizer.kind if trajectory.optimizer is not None else None,
        "learning_rates": {step: sorted(set(by_name.values())) for step, by_name in rates.items()},
        "states": {checkpoint.step: digest(checkpoint.state, most=4096) for checkpoint in trajectory.checkpoints},
        "data": {name: None if sample is None else sample.digest() for name, sample in samples.items()},
        "loss": mean_loss(task, trajectory.checkpoints[0], samples["train"]),
    }
    temporary: tempfile.TemporaryDirectory[str] | None = None
    if output is None:
        temporary = tempfile.TemporaryDirectory(prefix="diffin-probes-")
        output = temporary.name
    writer = ProbeWriter(output, names, metadata)
    query_set = None if asked is None else SampleSet(reader(asked, batch_size), "the query set")
    run = Run(task, trajectory, names, size, train, query_set, Draws(train, train.length or size, batch_size))
    with phase("building probes", estimator.work(trajectory), show=progress) as bar:
        for probes, carried in estimator.build(run, writer, bar):
            writer.write(probes, carried)
    built = writer.finish(list(steps))
    if temporary is not None:
        weakref.finalize(built, temporary.cleanup)
    return built


@dataclass(frozen=True)
class Draws:
    """Samples of the training set by key, so that every draw is the same in every run and on every machine."""

    train: Source
    length: int
    batch_size: int

    def __call__(self, size: int | None, *key: int) -> SampleSet:
        source = self.train
        if size is not None and size < self.length:
            generator = np.random.default_rng(key)
            source = source.select(generator.choice(self.length, size, replace=False))
        return SampleSet(reader(source, self.batch_size), "the curvature set", skip_failed=True)


def reader(source: Source, batch_size: int) -> Callable[[], Any]:
    return lambda: (batch for _, batch in source.batches(batch_size))


def check_types(task: object, trajectory: object, estimator: object) -> None:
    """A wrong argument shall not come up as an attribute that some other class lacks."""
    if not isinstance(task, Task):
        raise DiffinError(f"task is a {type(task).__name__}: pass e.g. diffin.tasks.Classification(model)")
    if not isinstance(trajectory, Trajectory):
        raise DiffinError(f"trajectory is a {type(trajectory).__name__}: pass diffin.Trajectory.open(folder)")
    if not isinstance(estimator, ProbingEstimator):
        raise DiffinError(f"estimator={estimator!r}: pass an instance, e.g. diffin.Unrolled() or diffin.TracIn()")
    if not trajectory.checkpoints:
        raise TrajectoryError(
            "the trajectory has no checkpoint with a step after it; was the Recorder's total_steps far above the steps that "
            "were taken? Without total_steps it spaces checkpoints as it goes"
        )


def usable_samples(task: Task, source: Source, what: str) -> Sample:
    usable = Sample.of(source)
    found = usable.usable(task)
    if found is None:
        raise DatasetError(
            f"no loss of {usable.count} samples spread over the {what} set is finite; look at them and the model"
        )
    # All of them identify the set; only those with a finite loss were checked.
    return usable


def mean_loss(task: Task, checkpoint: Checkpoint, sample: Sample | None) -> str:
    """The mean loss of the samples, to three digits: it tells one loss function or model code from another."""
    if sample is None:
        return ""
    with frozen(task.model), torch.no_grad():
        loss = PerSampleLoss(task, checkpoint.state)
        losses = loss(loss.parameters, loss.to_device(sample.batch))
    return f"{float(losses[torch.isfinite(losses)].mean()):.3g}"


def known_size(trajectory: Trajectory, train: Source) -> int:
    """N: of the run, whatever part of its data, or other data, is looked at."""
    recorded, length = trajectory.dataset_size, train.length
    if recorded is not None and length is not None and recorded != length:
        _log.warning(
            "the run was trained on %d samples and %d are given; the scale of the influence is that of the run, and "
            "curvature sets are drawn from what is given", recorded, length,
        )  # fmt: skip
    size = recorded if recorded is not None else length
    if size is None:
        raise DatasetError(
            "the training set has no known length and the trajectory does not say how many samples the run used; "
            "pass dataset_size= to Trajectory.from_checkpoints"
        )
    return size


def warn_about_the_optimizer(trajectory: Trajectory, estimator: ProbingEstimator) -> None:
    optimizer = trajectory.optimizer
    if not isinstance(estimator, LocalEstimator):
        return
    if optimizer is not None and not optimizer.is_plain_sgd:
        _log.warning(
            "%s is derived for plain SGD; the run used %s, so read the scores as those of plain SGD at the same "
            "parameters and learning rates", type(getattr(estimator, "of", estimator)).__name__, optimizer.summary,
        )  # fmt: skip
