"""What an estimator is: (task, trajectory, query) -> probes, one checkpoint at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from diffin import vectors
from diffin.derivatives.gradient import SampleSet, mean_gradient
from diffin.probes import Probe
from diffin.task import PerSampleLoss
from diffin.vectors import Vector


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
    query: SampleSet | None
    draw: Callable[..., SampleSet]

    def rated(self, vector: Vector) -> Vector:
        """The vector with every parameter multiplied by its learning rate."""
        return vectors.scale(vector, self.learning_rates)

    def query_gradient(self) -> Vector:
        """g_V: the gradient of the mean loss of the query set."""
        assert self.query is not None  # build_probes has refused by now
        return mean_gradient(self.loss, self.query).gradient


@dataclass(frozen=True)
class Estimator:
    """An estimator: a frozen dataclass of its settings."""

    name: ClassVar[str]
    needs_query: ClassVar[bool] = True

    def describe(self) -> dict[str, Any]:
        """JSON-able: the name and the settings."""
        return {"name": self.name, **asdict(self)}


@dataclass(frozen=True)
class LocalEstimator(Estimator, ABC):
    """An estimator that knows the probes of a checkpoint from that checkpoint alone."""

    @abstractmethod
    def probes(self, at: Moment) -> tuple[Probe, ...]:
        """The probes of one checkpoint; the influence of a sample is the sum over all of all checkpoints."""
