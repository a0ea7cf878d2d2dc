"""From a training and a set of its samples to what training on them did to the parameters."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

from diffin import vectors
from diffin.derivatives.gradient import SampleSet
from diffin.errors import DiffinError
from diffin.estimators import Estimator, InverseHessian, LocalEstimator, Replay, Unrolled, default
from diffin.estimators.base import ProbingEstimator, Run
from diffin.estimators.build import (
    Draws,
    check_types,
    known_size,
    reader,
    usable_samples,
    warn_about_the_optimizer,
)
from diffin.parameters import at_checkpoints, by_segments, by_steps
from diffin.parameters.influence import ParameterInfluence
from diffin.progress import phase
from diffin.rerun import State
from diffin.rerun.tangent import Tangent
from diffin.sources import Collate, Indices, open_source
from diffin.sources.base import distinct_indices
from diffin.task import PerSampleLoss, Task, frozen, refuse_coupled
from diffin.trajectory import Trajectory
from diffin.vectors import Vector


def parameter_influence(
    task: Task,
    trajectory: Trajectory,
    train_dataset: Any,
    samples: Sequence[int] | Indices,
    *,
    estimator: Estimator | None = None,
    parameters: Sequence[str] | str | None = None,
    batch_size: int = 256,
    collate: Collate | None = None,
    workers: int = 0,
    progress: bool = True,
) -> ParameterInfluence:
    """What training on a set of samples did to the parameters: theta(with) - theta(without), to first order.

    Influence adds up, so that a set costs what a sample does, and the gradients of the set. Removing the samples moves the
    parameters by minus the result. It is to a set and all queries what :func:`diffin.score` is to a query and all samples.

    Args:
        task: model and loss; the model is read, never written.
        trajectory: what training left behind.
        train_dataset: what the run was trained on.
        samples: indices into it, each once.
        estimator: what to estimate with; ``None`` for :func:`diffin.estimators.default`, the most accurate for the run.
            `Replay` answers for this very run, `Unrolled` for what to expect of another order. Unrolled by steps takes two
            to five trainings, Replay about four; by segments, three times the Hessian products of its scores.
        parameters: shell-style name patterns of the parameters to study; ``None`` for all that training could change.
            `Replay` follows all of them, and so does Unrolled by steps once the samples have pushed the chosen ones.
        batch_size: samples per gradient pass. The result depends on it by rounding only.
        collate: makes a batch of a list of samples; ``None`` for the default.
        workers: processes that read the data.
        progress: show a bar with the time left.

    Raises:
        DatasetError: a sample is not in the training set or comes twice, there is none, or no loss is finite.
        TaskError: the task's losses cannot be used (see :func:`diffin.loss_checks.check_losses`).
        TrajectoryError: there is no checkpoint to measure at, the trajectory does not fit the model, or a training that has
            to be repeated cannot be.
        DerivativeError: a loss of the samples is not finite, or the model has no second derivative.
        DiffinError: the estimator says nothing about parameters.
    """
    refuse_coupled(task, "influence on the parameters")
    if isinstance(trajectory, Trajectory) and estimator is None:
        estimator = default(trajectory)
    if isinstance(estimator, Replay):
        if parameters is not None:
            raise DiffinError(
                "parameters=: Replay follows the whole training; pass parameters=None, or another estimator"
            )
        check_types(task, trajectory, Unrolled())
    else:
        check_types(task, trajectory, estimator)
    train = open_source(train_dataset, collate=collate, workers=workers)
    chosen = distinct_indices(samples, train.length)
    size = known_size(trajectory, train)
    usable_samples(task, train, "training")
    if isinstance(estimator, ProbingEstimator):
        estimator = estimator.resolved(task, trajectory, train)
        warn_about_the_optimizer(trajectory, estimator)
    with frozen(task.model):
        names = PerSampleLoss(task, trajectory.checkpoints[0].state, parameters).names
    run = Run(task, trajectory, names, size, train, None, Draws(train, train.length or size, batch_size))
    of_samples = SampleSet(reader(train.select(chosen), batch_size), "the samples")
    assert estimator is not None
    vector, buffers, state = _computed(run, chosen, of_samples, estimator, progress)
    described = {
        "estimator": estimator.describe(),
        "dataset_size": size,
        "total_steps": trajectory.total_steps,
        "optimizer": trajectory.optimizer.kind if trajectory.optimizer is not None else None,
    }
    return ParameterInfluence(_on_cpu(vector), _on_cpu(buffers), _on_cpu(state), chosen, described)


def _computed(
    run: Run, chosen: Indices, samples: SampleSet, estimator: Estimator, progress: bool
) -> tuple[Vector, Vector, Vector]:
    """The change of parameters and buffers, and the last state."""
    trajectory = run.trajectory
    end = (trajectory.final or trajectory.checkpoints[-1]).state
    with phase("following the parameters", _work(estimator, trajectory), show=progress) as bar:
        match estimator:
            case Replay(saturation=saturation):
                return _ended(run, *by_steps.replayed(run, chosen, bar, saturation=saturation))
            case Unrolled(propagation="steps", hessian=hessian):
                assert hessian != "auto"  # it is `resolved` that is asked
                return _ended(run, *by_steps.unrolled(run, samples, bar, states=estimator.states, hessian=hessian))
            case Unrolled(hessian=hessian):
                assert hessian != "auto"
                vector = by_segments.carry(
                    run, samples, bar, rank=estimator.rank, curvature_samples=estimator.curvature_samples,
                    seed=estimator.seed, hessian=hessian,
                )  # fmt: skip
                return vector, {}, end
            case InverseHessian():
                return at_checkpoints.at_the_end(run, samples, estimator, bar), {}, end
            case LocalEstimator():
                return reduce(vectors.add, at_checkpoints.terms(run, samples, estimator, bar)), {}, end
    raise DiffinError(
        f"{type(estimator).__name__} says nothing about parameters; pass Unrolled, Replay, InverseHessian, TracIn or DiffIn"
    )


def _work(estimator: Estimator, trajectory: Trajectory) -> int:
    """Units of work, for the progress bar."""
    if isinstance(estimator, Unrolled) and estimator.propagation == "steps":
        return by_steps.work(estimator.states, trajectory.total_steps)
    return estimator.work(trajectory) if isinstance(estimator, ProbingEstimator) else trajectory.total_steps


def _ended(run: Run, state: State, tangent: Tangent) -> tuple[Vector, Vector, Vector]:
    rest = PerSampleLoss(run.task, run.trajectory.stored[0].state).rest
    return tangent.parameters, tangent.buffers, {**rest, **state.parameters, **state.buffers}


def _on_cpu(vector: Vector) -> Vector:
    return {name: t.detach().cpu() for name, t in vector.items()}
