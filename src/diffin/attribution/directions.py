"""The half that takes gradients: at every state of the training, a direction for each of Q queries.

They are stored as probes whose tensors have one more dimension, that of the queries, in blocks of queries that fit into
memory: a folder of probes for each block, resumable state by state. The influence of a sample z on query q is

    I(z, q) = sum over states s of  weight_s ( <u_sq, g_z> + <v_sq, H_z d_s> ),

the second term for second-order estimators only.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffin.attribution import solved, walked
from diffin.attribution.local import ForAll
from diffin.attribution.queries import Queries
from diffin.batches import digest
from diffin.derivatives.kinks import kinks
from diffin.errors import DatasetError, DiffinError
from diffin.estimators import DiffIn, InverseHessian, ProbingEstimator, TracIn, Unrolled, together
from diffin.estimators.base import Built, Carried, Run, effective_rates
from diffin.estimators.build import (
    Draws,
    check_types,
    known_size,
    mean_loss,
    usable_samples,
    warn_about_the_optimizer,
)
from diffin.probes import CheckpointProbes, ProbeSet, ProbeWriter
from diffin.progress import Phase, phase
from diffin.sample import Sample
from diffin.sources import Source
from diffin.task import PerSampleLoss, Task, frozen
from diffin.trajectory import Trajectory

_log = logging.getLogger(__name__)

Build = Callable[[Run, Queries, Built, Phase], Iterator[tuple[CheckpointProbes, Carried]]]
"""Builds the directions of some queries at the states that are missing, as an estimator builds its probes."""

_BLOCK_BYTES = 2**27
_SOLVED_AT_ONCE = 8
"""Queries of a block whose directions are found one after another, so that an interruption costs no more than these."""


@dataclass(frozen=True)
class Directions:
    """Directions of Q queries, on disk.

    Attributes:
        blocks: the probes of each block of queries; they share their states.
        sizes: queries in each.
    """

    blocks: tuple[ProbeSet, ...]
    sizes: tuple[int, ...]

    @property
    def digest(self) -> str:
        return "-".join(block.digest for block in self.blocks)

    @property
    def metadata(self) -> dict[str, Any]:
        return dict(self.blocks[0].metadata)

    @property
    def steps(self) -> tuple[int, ...]:
        return self.blocks[0].steps


def build_directions(
    task: Task,
    trajectory: Trajectory,
    train: Source,
    queries: Queries,
    *,
    estimator: ProbingEstimator,
    parameters: Sequence[str] | str | None,
    output: Path | None,
    batch_size: int,
    progress: bool,
) -> Directions:
    """Build the directions of all queries; what ``output`` holds of them is kept. See :func:`diffin.build_probes`."""
    check_types(task, trajectory, estimator)
    size = known_size(trajectory, train)
    samples = {"train": usable_samples(task, train, "training"), "query": usable_samples(task, queries.source, "query")}
    estimator = estimator.resolved(task, trajectory, train)
    build = builder(estimator)
    warn_about_the_optimizer(trajectory, estimator)
    with frozen(task.model):
        loss = PerSampleLoss(task, trajectory.checkpoints[0].state, parameters)
        if isinstance(estimator, DiffIn) and samples["train"] is not None:
            _warn_about_kinks(loss, samples["train"])
    steps = estimator.steps(trajectory)
    rates = {c.step: effective_rates(trajectory, c, loss.names) for c in trajectory.checkpoints}
    metadata = {
        "estimator": estimator.describe(),
        "dataset_size": size,
        "total_steps": trajectory.total_steps,
        "optimizer": trajectory.optimizer.kind if trajectory.optimizer is not None else None,
        "learning_rates": {step: sorted(set(by_name.values())) for step, by_name in rates.items()},
        "states": {checkpoint.step: digest(checkpoint.state, most=4096) for checkpoint in trajectory.checkpoints},
        "train": None if samples["train"] is None else samples["train"].digest(),
        "loss": mean_loss(task, trajectory.checkpoints[0], samples["train"]),
    }
    if output is None:
        temporary = tempfile.TemporaryDirectory(prefix="diffin-directions-")
        output = Path(temporary.name)
    else:
        temporary = None
    run = Run(task, trajectory, loss.names, size, train, None, Draws(train, train.length or size, batch_size))
    bounds = _bounds(len(queries), loss, estimator)
    built = []
    with phase("building directions", len(bounds) * _work(estimator, trajectory, bounds[0]), show=progress) as bar:
        for number, (start, stop) in enumerate(bounds):
            asked = queries.part(start, stop)
            known = {**metadata, "queries": asked.digest(), "first": start, "count": stop - start}
            writer = ProbeWriter(output / f"{number:05d}", loss.names, known)
            for probes, carried in build(run, asked, writer, bar):
                writer.write(probes, carried)
            built.append(writer.finish(list(steps)))
    directions = Directions(tuple(built), tuple(stop - start for start, stop in bounds))
    if temporary is not None:
        weakref.finalize(directions.blocks[0], temporary.cleanup)
    return directions


def builder(estimator: ProbingEstimator) -> Build:
    """How an estimator, resolved, finds the directions of many queries.

    Raises:
        DiffinError: it cannot.
    """
    if isinstance(estimator, TracIn | DiffIn):
        return lambda run, queries, built, bar: ForAll(estimator, queries).build(run, built, bar)
    if isinstance(estimator, InverseHessian):
        return lambda run, queries, built, bar: solved.build(estimator, run, queries, built, bar)
    if isinstance(estimator, Unrolled) and estimator.propagation == "steps":
        return lambda run, queries, built, bar: walked.build(estimator, run, queries, built, bar)
    if isinstance(estimator, Unrolled):
        return lambda run, queries, built, bar: together.build(estimator, run, built, bar, queries.gradients)
    raise DiffinError(
        f"estimator={estimator!r} does not say what it makes of single queries; pass diffin.Unrolled(), diffin.TracIn(), "
        "diffin.DiffIn(), diffin.InverseHessian() or diffin.Replay()"
    )


def clear_directions(folder: Path) -> None:
    """Remove the directions in a folder."""
    for block in folder.glob("[0-9]" * 5):
        shutil.rmtree(block)


def _warn_about_kinks(loss: PerSampleLoss, sample: Sample) -> None:
    found = kinks(loss, sample.thinned(2).batch)
    if found:
        _log.warning(
            "the slope of the model jumps (%s), and the second derivatives of DiffIn are differences of gradients here: on a "
            "network with ReLU and max-pooling they were off by half; pass diffin.Unrolled() or diffin.TracIn(), or ask "
            "about a few queries with diffin.score(derivatives='forward')", ", ".join(sorted(found)),
        )  # fmt: skip


def _bounds(count: int, loss: PerSampleLoss, estimator: ProbingEstimator) -> list[tuple[int, int]]:
    """First query and end of every block. They depend on nothing but the question, so that an interrupted run goes on."""
    if not count:
        raise DatasetError("the query set is empty; pass at least one sample")
    of_one = sum(t.numel() * t.element_size() for t in loss.parameters.values())
    most = max(1, _BLOCK_BYTES // max(1, of_one))
    if isinstance(estimator, InverseHessian):
        most = min(most, _SOLVED_AT_ONCE)
    return [(start, min(start + most, count)) for start in range(0, count, most)]


def _work(estimator: ProbingEstimator, trajectory: Trajectory, bounds: tuple[int, int]) -> int:
    """Units of work for a block, for the progress bar."""
    one = estimator.work(trajectory)
    return one * (bounds[1] - bounds[0]) if isinstance(estimator, InverseHessian) else one
