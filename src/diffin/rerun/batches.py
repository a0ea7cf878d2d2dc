"""The batches of a recorded training, and those of the same training in another order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from diffin.batches import Batch, batch_size, nbytes, select, to_device
from diffin.errors import TrajectoryError
from diffin.sources import Indices, Source
from diffin.task import Task
from diffin.trajectory import StepLog

_HELD_BYTES = 2**29


@dataclass(frozen=True)
class Part:
    """Samples whose gradients are taken at once: the batch of a step, or one of its micro-batches.

    Attributes:
        indices: Int64[ndarray, "B"], of the samples.
        share: what a sample's loss is multiplied by in the objective of the step, 1/B where there is one part.
    """

    indices: Indices
    share: float


Order = Callable[[int], tuple[Part, ...]]
"""The parts of the batch of a step, by the number of steps before it; none for a step that was skipped."""


def recorded_order(log: StepLog, task: Task | None = None) -> Order:
    """The order that was recorded.

    Args:
        log: what the steps used.
        task: whose losses are weighed as the steps did; a mean over the items of a sample by default.

    Raises:
        TrajectoryError: the steps divided sums over items by the items of their batch, and the task takes means.
    """
    # Losses that are sums over the tokens of a sample, but for a constant, are what was divided; means are not.
    constant = getattr(task, "divisor", 1.0) if getattr(task, "reduction", "mean") == "sum" else log.items_per_sample()
    if constant is None:
        raise TrajectoryError(
            "this training cannot be repeated with this task: its objective was a mean over the tokens of a batch, whose "
            "samples have different numbers of them, and the task's losses are means over the tokens of a sample. Pass "
            "LanguageModel(model, reduction='sum', divisor=<mean number of predicted tokens of a sample>)"
        )

    def parts(step: int) -> tuple[Part, ...]:
        indices = log.indices(step)
        if log.skipped[step]:
            return ()
        if indices is None:
            raise TrajectoryError(f"the samples of step {step} were not recorded; pass indices to recorder.step")
        sizes = log.micro_batches(step)
        sizes = (len(indices),) if sizes is None else sizes
        division = log.division(step)
        if division is None:
            return _parts(indices, sizes, [1 / (len(sizes) * size) if size else 0.0 for size in sizes])
        return _parts(indices, sizes, [constant / divisor for divisor in division.divisors])

    return parts


def shuffled_order(log: StepLog, dataset_size: int, seed: int, task: Task | None = None) -> Order:
    """Another order of the same training: batches as large as recorded, their samples drawn anew.

    The steps are cut into passes, the longest runs in which no sample comes twice (the epochs, where a training has
    them), and each pass draws its samples without replacement from the whole training set. What a pass left out
    (``drop_last``) is therefore left out anew.
    """
    recorded = recorded_order(log, task)
    generator = np.random.default_rng(seed)
    drawn: list[tuple[Part, ...]] = []
    pending: list[tuple[Part, ...]] = []
    seen = np.zeros(dataset_size, dtype=bool)

    def finish() -> None:
        count = sum(len(part.indices) for parts in pending for part in parts)
        fresh = generator.permutation(dataset_size)[:count]
        position = 0
        for parts in pending:
            replaced = []
            for part in parts:
                replaced.append(Part(fresh[position : position + len(part.indices)], part.share))
                position += len(part.indices)
            drawn.append(tuple(replaced))
        pending.clear()
        seen[:] = False

    for step in range(len(log)):
        parts = recorded(step)
        indices = np.concatenate([part.indices for part in parts]) if parts else np.empty(0, dtype=np.int64)
        if len(np.unique(indices)) < len(indices):
            raise TrajectoryError(
                f"the batch of step {step} holds a sample twice, so no other order of this training can be drawn"
            )
        if seen[indices].any():
            finish()
        seen[indices] = True
        pending.append(parts)
    finish()
    return drawn.__getitem__


class Batches:
    """Reads batches by index.

    Args:
        source: the training set.
        device: where batches are needed.
    """

    def __init__(self, source: Source, device: torch.device) -> None:
        self._source, self._device = source, device
        self._rows: Indices = np.empty(0, dtype=np.int64)
        self._held: Batch = None

    def hold(self, indices: Indices) -> None:
        """Read samples that will be asked for, at once and in their order on disk, and keep them if they fit in memory.

        Args:
            indices: of them, in any order.

        Raises:
            DatasetError: an index is out of range, or the training set has no random access.
        """
        wanted = np.union1d(self._rows, indices)
        # Only the default collate function is known to make of all samples what it makes of a few, in rows.
        in_rows = self._source.random_access and self._source.collate is default_collate
        if len(wanted) == len(self._rows) or not in_rows:
            return
        few = self._source.fetch(wanted[:4])
        if isinstance(few, Tensor | tuple | list | dict) and nbytes(few) / batch_size(few) * len(wanted) <= _HELD_BYTES:
            self._rows, self._held = wanted, to_device(self._source.fetch(wanted), self._device)

    def read(self, indices: Indices) -> Batch:
        """The samples at ``indices``, in that order, on the device.

        Raises:
            DatasetError: an index is out of range, or the training set has no random access.
        """
        places = np.searchsorted(self._rows, indices)
        if len(self._rows) and np.array_equal(self._rows.take(places, mode="clip"), indices):
            return select(self._held, torch.from_numpy(places).to(self._device))
        return to_device(self._source.fetch(indices), self._device)


def _parts(indices: Indices, sizes: tuple[int, ...], shares: list[float]) -> tuple[Part, ...]:
    ends = np.cumsum(sizes)
    return tuple(
        Part(indices[end - size : end], share)
        for end, size, share in zip(ends.tolist(), sizes, shares, strict=True)
        if size
    )
