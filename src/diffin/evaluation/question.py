"""What is asked: the effect of the training samples of a recorded run on the loss of a query."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from diffin.batches import digest, nbytes
from diffin.derivatives.gradient import SampleSet
from diffin.errors import DiffinError, EvaluationError, TrajectoryError
from diffin.estimators.build import query_reader
from diffin.evaluation.truth import Floats, as_indices
from diffin.loss_checks import check_losses
from diffin.losses import losses_at
from diffin.rerun import Rerun, State
from diffin.rerun.batches import shuffled_order
from diffin.sample import Sample
from diffin.sources import Collate, Indices, open_source
from diffin.sources.composed import whole
from diffin.task import PerSampleLoss, Task
from diffin.trajectory import Trajectory

_BATCH = 256
_HELD_BYTES = 2**28
_FAR_OFF = 0.05


class Question:
    """A run, its training set, and a query.

    Args:
        task: model and loss, as trained.
        trajectory: the recorded run.
        train: the training set.
        query: the samples whose mean loss is asked about.
        collate: makes a batch of a list of samples; ``None`` for the default.
        singles: positions in the query of samples whose own loss is asked about, too.

    Raises:
        TrajectoryError: the run cannot be repeated.
        DatasetError: a data set is empty, or has no random access.
        TaskError: the losses cannot be used.
    """

    def __init__(
        self,
        task: Task,
        trajectory: Trajectory,
        train: Any,
        query: Any,
        *,
        collate: Collate | None = None,
        singles: Sequence[int] | Indices | None = None,
    ) -> None:
        if not isinstance(task, Task):
            raise DiffinError(f"task is a {type(task).__name__}: pass e.g. diffin.tasks.Classification(model)")
        if not isinstance(trajectory, Trajectory):
            raise DiffinError(f"trajectory is a {type(trajectory).__name__}: pass diffin.Trajectory.open(folder)")
        if query is None:
            raise DiffinError("query=None: pass the samples whose loss is asked about, e.g. a validation set")
        self.task, self.trajectory = task, trajectory
        self.train = open_source(train, collate=collate)
        self.query = open_source(query, collate=collate)
        self.recorded = Rerun(task, trajectory, self.train)
        self.size: int = trajectory.dataset_size or self.train.length or 0
        self.singles = None
        if singles is not None:
            length = self.query.length
            if length is None:
                raise EvaluationError("query_samples: the query has no known length; pass a map-style data set")
            if task.group_size is not None:
                length = whole(length, task.group_size)
            self.singles = as_indices(singles, length, "query_samples")
        self._read_query = query_reader(task, self.query, _BATCH)
        self._query_sample = Sample.of(self.query)
        check_losses(task, self._query_sample.batch)

    @property
    def loss(self) -> PerSampleLoss:
        return self.recorded.loss

    def rerun(self, order_seed: int | None) -> Rerun:
        """The training in the recorded order, or in the one that the seed draws."""
        if order_seed is None:
            return self.recorded
        other = Rerun(
            self.task,
            self.trajectory,
            self.train,
            order=shuffled_order(self.recorded.log, self.size, order_seed, self.task),
        )
        other.batches = self.recorded.batches  # read once for all orders
        return other

    def query_set(self) -> SampleSet:
        """The query, for a gradient."""
        return SampleSet(self._query_batches, "the query set")

    def losses(self, state: State) -> Floats:
        """The mean loss of the query in evaluation mode, and that of each single sample: Float64[ndarray, "1 + singles"]."""
        tensors = {**state.parameters, **{name: t.clone() for name, t in state.buffers.items()}}
        losses = losses_at(self.loss, self._query_batches(), at=tensors)
        singles = losses[:0] if self.singles is None else losses[self.singles]
        joined: Floats = np.concatenate([[losses.mean()], singles])
        return joined

    def identity(self) -> dict[str, Any]:
        """Of the run, the data, the loss and the query, JSON-able."""
        stored = self.trajectory.stored
        return {
            "steps": self.trajectory.total_steps,
            "run": [digest(stored[0].state, most=4096), digest(stored[-1].state, most=4096)],
            "training set": [self.size, Sample.of(self.train).digest()],
            "query": [self.query.length, self._query_sample.digest()],
            "loss": f"{self.losses(self._final)[0]:.3g}",
            "query_samples": None if self.singles is None else self.singles.tolist(),
        }

    def check_repeats(self) -> float:
        """Take the recorded steps up to the first stored state again, and compare.

        Returns:
            The distance of the two, over the distance travelled.

        Raises:
            TrajectoryError: it is not the same training.
        """
        return self.recorded.repeat(*self.trajectory.stored[:2])

    def check_base(self, losses: Floats) -> None:
        """Compare the query loss of the whole training, taken again in the recorded order, with that of the recorded one.

        Raises:
            TrajectoryError: they are far apart.
        """
        recorded, again = float(self.losses(self._final)[0]), float(losses[0])
        initial = float(self.losses(self.recorded.state(self.trajectory.stored[0]))[0])
        if not abs(again - recorded) <= _FAR_OFF * max(abs(recorded), abs(initial - recorded)):
            raise TrajectoryError(
                f"the training, taken again as recorded, ends at a query loss of {again:.4g}, and the recorded one at "
                f"{recorded:.4g}: small differences grow too much in this training (a large learning rate?) for a truth "
                "about this very run; pass orders=8 for the truth expected over other orders, or record it in float64"
            )

    @property
    def _final(self) -> State:
        return self.recorded.state(self.trajectory.stored[-1])

    def _query_batches(self) -> Iterator[Any]:
        if self._held_query is not None:
            yield from self._held_query
            return
        yield from self._read_query()

    @cached_property
    def _held_query(self) -> list[Any] | None:
        held, size = [], 0
        for batch in self._read_query():
            held.append(self.loss.to_device(batch))
            size += nbytes(batch)
            if size > _HELD_BYTES:
                return None
        return held


def order_seeds(orders: int, seed: int) -> list[int]:
    """Seeds of K orders; those of fewer are the first of them, and another seed has others.

    Raises:
        EvaluationError: ``orders`` is negative.
    """
    if orders < 0:
        raise EvaluationError(
            f"orders={orders}; pass 0 for the recorded order, or how many other orders to average over"
        )
    return [int(drawn) for drawn in np.random.SeedSequence(seed).generate_state(orders, np.uint32)] if orders else []
