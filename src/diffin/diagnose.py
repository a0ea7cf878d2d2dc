"""Before a long run: do the derivatives hold, what will it cost, and what cannot be replayed."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from diffin.batches import Batch, batch_size
from diffin.derivatives.gradient import SampleSet
from diffin.derivatives.hessian import HessianProduct
from diffin.derivatives.selfcheck import SelfCheck, choose, fastest_seconds
from diffin.errors import DiffinError
from diffin.estimators import Estimator, ProbingEstimator, Replay, Unrolled, build_probes, default
from diffin.estimators.replay import query_adjoint
from diffin.memory import resident_bytes
from diffin.problem import Problem
from diffin.rerun import Rerun
from diffin.rerun.products import carry_back
from diffin.scoring import score
from diffin.scoring.engine import kept_ready
from diffin.scoring.stability import spearman
from diffin.sources import Source, open_source
from diffin.task import PerSampleLoss, frozen
from diffin.trajectory import Trajectory

_TIMED = 256
_TIMED_STEPS = 8


@dataclass(frozen=True)
class Forecast:
    """What scoring will take on this machine, from a short measured run.

    Attributes:
        samples: N, or ``None`` if the training set does not say.
        checkpoints: states at which samples are measured; 0 for `Replay`, which measures them as it walks.
        probe_seconds: to build the probes of all of them, or to walk.
        inference_seconds: one plain pass over the data and all checkpoints, reading included; ``None`` without N.
        scoring_seconds: the same with the chosen back end.
        probe_bytes: what the probes take on disk.
        reading: seconds to read one sample.
        measuring: seconds to measure one sample at all states.
        process_bytes: memory of a process that scores: what this one takes, and the states that it would keep ready.
    """

    samples: int | None
    checkpoints: int
    probe_seconds: float
    inference_seconds: float | None
    scoring_seconds: float | None
    probe_bytes: int
    reading: float
    measuring: float
    process_bytes: int


@dataclass(frozen=True)
class Diagnosis:
    """What :func:`diagnose` found."""

    check: SelfCheck
    forecast: Forecast
    replay_obstacles: tuple[str, ...]
    estimator: str


def diagnose(
    problem: Problem,
    trajectory: Trajectory,
    *,
    estimator: Estimator | None = None,
    parameters: Sequence[str] | str | None = None,
    progress: bool = True,
) -> Diagnosis:
    """Check every derivative back end, and forecast a scoring run.

    Probes are built at the first, the middle and the last checkpoint only, and a few hundred samples are measured.

    Args:
        problem: task, training set and query.
        trajectory: what training left behind.
        estimator: what will be estimated with; ``None`` for the default. `Replay` has no probes to look at.
        parameters: name patterns of the studied parameters.
        progress: show a bar.

    Raises:
        DiffinError: as :func:`diffin.score` would.
    """
    estimator = default(trajectory) if estimator is None else estimator
    if isinstance(estimator, ProbingEstimator):
        estimator = estimator.resolved(problem.task, trajectory, open_source(problem.train, collate=problem.collate))
    walks = isinstance(estimator, Replay) or (isinstance(estimator, Unrolled) and estimator.propagation == "steps")
    # A walk has no probes before its end, so derivatives are looked at along those of its segments.
    probing = Unrolled(propagation="segments") if walks else estimator
    if not isinstance(probing, ProbingEstimator):
        raise DiffinError(f"estimator={estimator!r}: pass an instance, e.g. diffin.Unrolled()")
    recorded = len(trajectory.checkpoints)
    few = copy.copy(trajectory)
    few.checkpoints = (
        tuple(trajectory.checkpoints[i] for i in sorted({0, recorded // 2, recorded - 1})) if recorded else ()
    )
    source = open_source(problem.train, collate=problem.collate)
    batch, reading = _read(source)
    start = time.perf_counter()
    probes = build_probes(
        problem.task, few, problem.train, query=problem.query, estimator=probing, parameters=parameters,
        collate=problem.collate, progress=progress,
    )  # fmt: skip
    count = len(estimator.steps(trajectory)) if isinstance(estimator, ProbingEstimator) else 0
    building = (time.perf_counter() - start) * count / len(few.checkpoints)
    if walks:
        hessian = estimator.hessian if isinstance(estimator, Unrolled) else "exact"
        assert hessian != "auto"  # it was resolved
        building = _walk_seconds(problem, trajectory, hessian, reading)
    check = choose(problem.task, probes, batch, every=True).report
    with frozen(problem.task.model):
        loss = PerSampleLoss(problem.task, probes.load(0).state, list(probes.parameters))
        batch = loss.to_device(batch)
        with torch.inference_mode():
            plain = fastest_seconds(lambda: loss(loss.parameters, batch), loss.device) / batch_size(batch)
    size = sum(file.stat().st_size for file in probes.path.glob("*.safetensors"))
    cost = next(entry.cost for entry in check.back_ends if entry.name == check.chosen) or 1.0
    cost *= max(probes.counts)  # the self-check measures one probe of a checkpoint
    passes = None if source.length is None else source.length * count
    read = 0.0 if source.length is None else source.length * reading
    return Diagnosis(
        check=check,
        forecast=Forecast(
            samples=source.length,
            checkpoints=count,
            probe_seconds=building,
            inference_seconds=None if passes is None else read + passes * plain,
            scoring_seconds=None if passes is None else read + passes * plain * cost,
            probe_bytes=size * count // len(few.checkpoints),
            reading=reading,
            measuring=count * plain * cost,
            process_bytes=resident_bytes() + kept_ready(problem.task, probes, count),
        ),
        replay_obstacles=tuple(_obstacles(problem, trajectory)),
        estimator=repr(estimator),
    )


def _read(source: Source) -> tuple[Batch, float]:
    """A batch, and the seconds that a sample takes to be read: what opens files comes first, and is not counted twice."""
    batches = source.batches(_TIMED, stop=_TIMED * 3)
    taken, kept = [], None
    start = time.perf_counter()
    for indices, batch in batches:
        taken.append((time.perf_counter() - start) / len(indices))
        kept = batch if kept is None else kept
        start = time.perf_counter()
    return kept, statistics.median(taken)


def _obstacles(problem: Problem, trajectory: Trajectory) -> list[str]:
    """Why the training cannot be repeated: what was not recorded, or how the attempt at a few of its steps went wrong."""
    obstacles = trajectory.replay_obstacles()
    if obstacles:
        return obstacles
    try:
        Rerun(problem.task, trajectory, open_source(problem.train, collate=problem.collate)).check_repeatable()
    except DiffinError as error:
        return [str(error)]
    return []


def luck(problem: Problem, trajectory: Trajectory, *, progress: bool = True) -> float:
    """How far a sample's influence on this run is what is to be expected of it, rather than luck of the order.

    The Spearman correlation, over the training set, between the exact influence on the run (:class:`diffin.Replay`) and what
    :class:`diffin.Unrolled` expects in any order. Both come from the one recording; where they disagree, one run says little
    about the data, and the estimate itself is less certain. It takes a few trainings.

    Args:
        problem: task, training set and query.
        trajectory: a recorded run that can be repeated.
        progress: show bars.

    Raises:
        DiffinError: as :func:`diffin.score` would.
    """
    scored = [
        score(
            problem.task, trajectory, problem.train, query=problem.query, estimator=estimator, collate=problem.collate,
            progress=progress,
        ).influence
        for estimator in (Replay(), Unrolled(propagation="steps"))
    ]  # fmt: skip
    known = np.isfinite(scored[0]) & np.isfinite(scored[1])
    return spearman(scored[0][known], scored[1][known])


def _walk_seconds(problem: Problem, trajectory: Trajectory, hessian: HessianProduct, reading: float) -> float:
    """What a walk through the whole training will take, from a few of its steps and what it takes to read a sample."""
    rerun = Rerun(problem.task, trajectory, open_source(problem.train, collate=problem.collate))
    asked = open_source(problem.query, collate=problem.collate)
    query = SampleSet(lambda: (batch for _, batch in asked.batches(_TIMED, stop=_TIMED)), "the query set")
    steps = range(min(_TIMED_STEPS, trajectory.total_steps))
    with rerun.entered(steps):
        state = rerun.state(trajectory.stored[0])
        adjoint = query_adjoint(rerun, state, query)
        taken = []
        for _ in steps:
            start = time.perf_counter()
            after = rerun.advance(state, keep_gradients=hessian != "exact")
            if after.gradients is not None:
                carry_back(rerun, state, adjoint, after.gradients, hessian=hessian)
            else:
                rerun.pull_back(state, [adjoint])
            state = after
            taken.append(time.perf_counter() - start)
    return len(rerun.samples()) * reading + statistics.median(taken) * trajectory.total_steps
