"""Building the probes of a whole trajectory, resumable checkpoint by checkpoint."""

from __future__ import annotations

import logging
import tempfile
import weakref
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from diffin.across_probes import End
from diffin.batches import digest
from diffin.derivatives.gradient import SampleSet
from diffin.errors import DatasetError, DiffinError, ProbeError, TrajectoryError
from diffin.estimators.base import LocalEstimator, ProbingEstimator, Run, effective_rates
from diffin.parallel import ALONE, Ranks, ranks_of_torchrun
from diffin.probes import ProbeSet, ProbeWriter
from diffin.progress import phase
from diffin.sample import Sample
from diffin.sources import Source, open_source
from diffin.sources.composed import in_order, shuffled, whole
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
    engine: Literal["local", "torchrun"] = "local",
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
        batch_size: samples per gradient pass. Probes depend on it by rounding only; coupled losses come in groups instead.
        workers: processes that read the data.
        collate: makes a batch of a list of samples; the DataLoader's default otherwise.
        progress: show a bar with the time left.
        engine: who takes the gradients: ``"local"``, this process; ``"torchrun"``, all processes that ``torchrun`` has
            started, each of which makes this call, of a share of the samples. Probes depend on it by rounding only.

    Raises:
        TaskError: the task's losses cannot be used (see :func:`diffin.loss_checks.check_losses`).
        TrajectoryError: there is no checkpoint to measure at, or it does not fit the model.
        DatasetError: a data set is empty, or no loss in it is finite.
        DerivativeError: a loss of the query is not finite, or the model has no second derivative.
        ProbeError: ``output`` holds the probes of another run, or cannot be written.
    """
    check_types(task, trajectory, estimator)
    if engine not in ("local", "torchrun"):
        raise DiffinError(f"engine={engine!r}: probes are built by 'local' or 'torchrun'")
    with ranks_of_torchrun(task.device) if engine == "torchrun" else nullcontext(ALONE) as ranks:
        return _built(
            task, trajectory, train_dataset, query, estimator, parameters, output, batch_size, workers, collate,
            progress and ranks.rank == 0, ranks,
        )  # fmt: skip


def _built(
    task: Task,
    trajectory: Trajectory,
    train_dataset: Any,
    query: Any,
    estimator: ProbingEstimator,
    parameters: Sequence[str] | str | None,
    output: str | Path | None,
    batch_size: int,
    workers: int,
    collate: Callable[[list[Any]], Any] | None,
    progress: bool,
    ranks: Ranks,
) -> ProbeSet:
    if output is None and ranks.count > 1:
        raise ProbeError("engine='torchrun': pass output=, a folder that every process can read")
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
    chosen = estimator
    estimator = ranks.once(lambda: chosen.resolved(task, trajectory, train))
    warn_about_the_optimizer(trajectory, estimator)
    _warn_about_groups(task, trajectory)
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
    if task.group_size is not None:
        metadata["groups"] = {"size": task.group_size, "seed": task.group_seed}
    own, metadata = metadata, ranks.once(lambda: metadata)
    if own["data"] != metadata["data"]:
        raise DatasetError(
            "the data of this process is not that of rank 0; have every process open the same samples, in the same order"
        )
    writer = ProbeWriter(output, names, metadata)
    query_set: SampleSet | None = None
    if asked is not None:
        own_share = shared(asked, batch_size, task.group_size, ranks)
        query_set = SampleSet(query_reader(task, asked, batch_size), "the query set", ranks=ranks, share=own_share)
    draws = Draws(train, train.length or size, batch_size, task.group_size, task.group_seed, ranks)
    run = Run(task, trajectory, names, size, train, query_set, draws, ranks)
    with phase("building probes", estimator.work(trajectory), show=progress) as bar:
        for probes, carried in estimator.build(run, _Seen(writer, ranks), bar):
            ranks.once(partial(writer.write, probes, carried))

    def finish() -> None:
        writer.finish(list(steps))

    ranks.once(finish)
    built = ProbeSet.open(output)
    if temporary is not None:
        weakref.finalize(built, temporary.cleanup)
    return built


@dataclass(frozen=True)
class Draws:
    """Samples of the training set by key, so that every draw is the same in every run and on every machine.

    Those of a coupled loss come in groups that are drawn, too, and are one group at least.
    """

    train: Source
    length: int
    batch_size: int
    group_size: int | None = None
    group_seed: int = 0
    ranks: Ranks = ALONE

    def __call__(self, size: int | None, *key: int) -> SampleSet:
        source = self.train
        if size is not None and self.group_size is not None:
            size = max(size, self.group_size)
        if size is not None and size < self.length:
            generator = np.random.default_rng(key)
            source = source.select(generator.choice(self.length, size, replace=False))
        read, share = reader(source, self.batch_size), shared(source, self.batch_size, self.group_size, self.ranks)
        if self.group_size is not None:
            read = partial(shuffled, source, self.group_size, (self.group_seed, *key))
            share = partial(read, share=(self.ranks.rank, self.ranks.count))
        return SampleSet(read, "the curvature set", True, self.ranks, share)


@dataclass(frozen=True)
class _Seen:
    """What an interrupted build has left, as the first process sees it: a network's file system may show others less."""

    writer: ProbeWriter
    ranks: Ranks

    def has(self, step: int) -> bool:
        return self.ranks.once(partial(self.writer.has, step))

    def carried(self, step: int) -> dict[str, Tensor]:
        return self.writer.carried(step)

    def end(self) -> End | None:
        return self.writer.end() if self.ranks.once(lambda: self.writer.end() is not None) else None


def query_reader(task: Task, source: Source, batch_size: int) -> Callable[[], Any]:
    """Reads a query: batches of any size, or the groups of a coupled loss, in order."""
    size = task.group_size
    if size is None:
        return reader(source, batch_size)
    if source.length is not None and (left := source.length - whole(source.length, size)):
        _log.warning(
            "the last %d of %d samples of the query do not fill a group of %d, and are left out: a loss among fewer is "
            "another one", left, source.length, size,
        )  # fmt: skip
    return partial(in_order, source, size)


def shared(source: Source, batch_size: int, group_size: int | None, ranks: Ranks) -> Callable[[], Any] | None:
    """Reads what this process takes of a set, and no more; ``None`` where that cannot be told by position."""
    if ranks.count == 1 or group_size is not None or source.length is None or not source.random_access:
        return None
    first, end = ranks.share(source.length)
    return lambda: (batch for _, batch in source.batches(batch_size, first, end))


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


def _warn_about_groups(task: Task, trajectory: Trajectory) -> None:
    """A contrastive loss among fewer, or more, than in training is another loss."""
    log = trajectory.steps
    if task.group_size is None or log is None or not len(log) or (indices := log.indices(0)) is None:
        return
    trained = max(log.micro_batches(0) or (len(indices),))
    if trained != task.group_size:
        _log.warning(
            "the run took coupled losses of %d samples together, and the task takes those of %d; the scores are of that "
            "loss. Pass group_size=%d to the task for the loss of the run", trained, task.group_size, trained,
        )  # fmt: skip


def warn_about_the_optimizer(trajectory: Trajectory, estimator: ProbingEstimator) -> None:
    optimizer = trajectory.optimizer
    if not isinstance(estimator, LocalEstimator):
        return
    if optimizer is not None and not optimizer.is_plain_sgd:
        _log.warning(
            "%s is derived for plain SGD; the run used %s, so read the scores as those of plain SGD at the same "
            "parameters and learning rates", type(getattr(estimator, "of", estimator)).__name__, optimizer.summary,
        )  # fmt: skip
