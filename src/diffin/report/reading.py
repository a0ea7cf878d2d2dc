"""Reading the few samples that a page shows, exactly as scoring read them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from diffin.batches import Batch
from diffin.errors import DatasetError, ProblemError
from diffin.problem import Problem
from diffin.report.samples import Shown, show_item
from diffin.sources import Collate, open_source

_BATCH_SIZE = 64


def show_samples(problem: Problem, indices: Iterable[int]) -> dict[int, Shown]:
    """What the training samples at ``indices`` look like, by index.

    Raises:
        DatasetError: the data set does not hold one of them.
        ProblemError: ``problem.show`` fails.
    """
    shown = {}
    for index, item in read_items(problem.train, indices).items():
        try:
            shown[index] = show_item(item, problem.show)
        except Exception as error:
            if problem.show is None:
                raise
            raise ProblemError(
                f"Problem(show=...) failed on sample {index}: {type(error).__name__}: {error}"
            ) from error
    return shown


def read_items(dataset: Any, indices: Iterable[int]) -> dict[int, Any]:
    """The items of a data set at ``indices``, not collated, by index.

    Raises:
        DatasetError: the data set does not hold one of them.
    """
    return {
        index: item
        for part, items in read_batches(dataset, indices, list)
        for index, item in zip(part, items, strict=True)
    }


def read_batches(dataset: Any, indices: Iterable[int], collate: Collate | None) -> Iterator[tuple[list[int], Batch]]:
    """Batches of the samples at ``indices``, in ascending order and without repetition.

    Args:
        dataset: whatever can be scored.
        indices: into it.
        collate: makes a batch of a list of items; ``None`` as in scoring.

    Raises:
        DatasetError: the data set does not hold one of them.
    """
    wanted = sorted({int(i) for i in indices})
    if not wanted:
        return
    source = open_source(dataset, collate=collate)
    if source.length is not None:
        if wanted[-1] >= source.length:
            raise _too_short(wanted[-1])
        for part, batch in source.select(wanted).batches(_BATCH_SIZE):
            yield part.tolist(), batch
        return
    # An iterable of unknown length can only be walked through.
    missing = set(wanted)
    for part, batch in source.batches(1):
        if int(part[0]) in missing:
            yield part.tolist(), batch
            missing.discard(int(part[0]))
        if not missing:
            return
    raise _too_short(max(missing))


def _too_short(index: int) -> DatasetError:
    return DatasetError(
        f"problem.train has no sample {index}, which the scores refer to; pass the problem that was scored"
    )
