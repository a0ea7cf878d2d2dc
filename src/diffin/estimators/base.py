"""What an estimator is: (task, trajectory, query) -> probes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor

from diffin import vectors
from diffin.across_probes import End
from diffin.derivatives.gradient import SampleSet, mean_gradient
from diffin.errors import TrajectoryError
from diffin.parallel import ALONE, Ranks
from diffin.probes import CheckpointProbes, Probe
from diffin.progress import Phase
from diffin.sources import Source
from diffin.task import PerSampleLoss, Task, frozen
from diffin.trajectory import Checkpoint, Trajectory
from diffin.vectors import Vector

Draw = Callable[..., SampleSet]
"""``draw(size, *key)``: the whole training set for ``None``, else ``size`` samples of it, drawn without replacement by a
generator seeded with the key; one draw per key, whatever else is drawn."""

Carried = Mapping[str, Tensor]
"""What an estimator that walks along the training hands from one of its states to the next, by name."""


@dataclass(frozen=True)
class Run:
    """A training and a question about it.

    Attributes:
        task: model and loss.
        trajectory: what training left behind.
        names: the studied parameters.
        dataset_size: N, the number of samples the run was trained on.
        train: the training set.
        query: the query set, or ``None`` for an estimator that asks about the training risk.
        draw: samples of the training set.
        ranks: the processes that build the same probes side by side.
    """

    task: Task
    trajectory: Trajectory
    names: list[str]
    dataset_size: int
    train: Source
    query: SampleSet | None
    draw: Draw
    ranks: Ranks = ALONE

    def loss(self, checkpoint: Checkpoint) -> PerSampleLoss:
        """Losses at a checkpoint as a function of the studied parameters. Use it inside :func:`diffin.task.frozen`."""
        return PerSampleLoss(self.task, checkpoint.state, self.names)

    def moment(self, checkpoint: Checkpoint) -> Moment:
        """What a local estimator sees of a checkpoint. Use it inside :func:`diffin.task.frozen`."""
        return Moment(
            loss=self.loss(checkpoint),
            step=checkpoint.step,
            total_steps=self.trajectory.total_steps,
            checkpoints=len(self.trajectory.checkpoints),
            dataset_size=self.dataset_size,
            learning_rates=effective_rates(self.trajectory, checkpoint, self.names),
            query=self.query,
            draw=self.draw,
        )

    def query_gradient(self, loss: PerSampleLoss) -> Vector:
        """g_V: the gradient of the mean loss of the query set."""
        assert self.query is not None  # build_probes has refused by now
        return mean_gradient(loss, self.query).gradient


class Built(Protocol):
    """The probes that an earlier, interrupted build left."""

    def has(self, step: int) -> bool: ...

    def carried(self, step: int) -> dict[str, Tensor]: ...

    def end(self) -> End | None: ...


@dataclass(frozen=True)
class Estimator(ABC):
    """An estimator: a frozen dataclass of its settings."""

    name: ClassVar[str]
    needs_query: ClassVar[bool] = True

    def describe(self) -> dict[str, Any]:
        """JSON-able: the name and the settings."""
        return {"name": self.name, **asdict(self)}


@dataclass(frozen=True)
class ProbingEstimator(Estimator):
    """An estimator that asks every sample the same numbers, at some states of the training."""

    def resolved(self, task: Task, trajectory: Trajectory, train: Source) -> ProbingEstimator:
        """The same estimator with everything decided that it leaves open."""
        del task, trajectory, train
        return self

    @abstractmethod
    def steps(self, trajectory: Trajectory) -> tuple[int, ...]:
        """The states it probes, by the steps taken before them, ascending.

        Raises:
            TrajectoryError: the trajectory lacks what the estimator needs.
        """

    @abstractmethod
    def build(self, run: Run, built: Built, bar: Phase) -> Iterator[tuple[CheckpointProbes, Carried]]:
        """Build what ``built`` lacks, in an order of its own.

        Args:
            run: the training and the question.
            built: what is there already.
            bar: to advance by :meth:`work` in all.

        Yields:
            The probes of a state, and what building the next one needs besides ``run``.
        """

    def work(self, trajectory: Trajectory) -> int:
        """Units of work, for the progress bar."""
        return len(self.steps(trajectory))


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
        draw: samples of the training set.
    """

    loss: PerSampleLoss
    step: int
    total_steps: int
    checkpoints: int
    dataset_size: int
    learning_rates: dict[str, float]
    query: SampleSet | None
    draw: Draw

    def rated(self, vector: Vector) -> Vector:
        """The vector with every parameter multiplied by its learning rate."""
        return vectors.scale(vector, self.learning_rates)

    def query_gradient(self) -> Vector:
        """g_V: the gradient of the mean loss of the query set."""
        assert self.query is not None  # build_probes has refused by now
        return mean_gradient(self.loss, self.query).gradient


def effective_rates(trajectory: Trajectory, checkpoint: Checkpoint, names: list[str]) -> dict[str, float]:
    """Learning rates of the step after the checkpoint, times its clipping coefficient: the factor of a gradient.

    Raises:
        TrajectoryError: a rate is not finite.
    """
    coefficient = 1.0 if trajectory.steps is None else trajectory.steps.clip_coefficient(checkpoint.step)
    rates = {name: rate * coefficient for name, rate in checkpoint.learning_rates(names).items()}
    if not all(math.isfinite(rate) for rate in rates.values()):
        raise TrajectoryError(
            f"the step after checkpoint {checkpoint.step} has no finite learning rate; an optimizer without one (lr) cannot "
            "be studied"
        )
    return rates


@dataclass(frozen=True)
class LocalEstimator(ProbingEstimator):
    """An estimator that knows the probes of a checkpoint from that checkpoint alone."""

    @abstractmethod
    def probes(self, at: Moment) -> tuple[Probe, ...]:
        """The probes of one checkpoint; the influence of a sample is the sum over all of all checkpoints."""

    def at_checkpoint(self, at: Moment, checkpoint: Checkpoint) -> CheckpointProbes:
        """The probes of one checkpoint, with the state to measure them at."""
        return CheckpointProbes(checkpoint.step, checkpoint.state, self.probes(at))

    def steps(self, trajectory: Trajectory) -> tuple[int, ...]:
        return tuple(checkpoint.step for checkpoint in trajectory.checkpoints)

    def build(self, run: Run, built: Built, bar: Phase) -> Iterator[tuple[CheckpointProbes, Carried]]:
        for checkpoint in run.trajectory.checkpoints:
            if not built.has(checkpoint.step):
                with frozen(run.task.model):
                    probes = self.at_checkpoint(run.moment(checkpoint), checkpoint)
                yield probes, {}
            bar.advance()
