"""Reading a dataset that can only be iterated; the index of a sample is its position."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np

from diffin.batches import Batch
from diffin.errors import DatasetError
from diffin.sources.base import NO_SAMPLES, Collate, Indices, Source, checked_indices, ranges
from diffin.sources.kinds import length_of
from diffin.sources.reading import collated
from diffin.sources.seeding import caller_generators_kept, seed


class IterableSource(Source):
    """Samples of an iterable, read from its start each time, by this process."""

    random_access = False

    def __init__(self, dataset: Iterable[Any], collate: Collate, selection: Indices | None = None) -> None:
        super().__init__()
        self._dataset, self.collate, self._selection = dataset, collate, selection
        self._total = length_of(dataset)
        self.length = self._total if selection is None else len(selection)
        if self.length == 0:
            raise DatasetError(NO_SAMPLES)

    def batches(
        self, batch_size: int, start: int = 0, stop: int | None = None, *, align: int | None = None
    ) -> Iterator[tuple[Indices, Batch]]:
        self._check(batch_size, start, stop)
        return self._read(batch_size, start, stop, align)

    def _read(
        self, batch_size: int, start: int, stop: int | None, align: int | None
    ) -> Iterator[tuple[Indices, Batch]]:
        samples = self._samples()
        with caller_generators_kept():
            position = sum(1 for _ in islice(samples, start))
        for first, last in ranges(start, stop, batch_size, align):
            with caller_generators_kept():
                chunk = list(islice(samples, last - first))
                indices = np.array([index for index, _ in chunk], dtype=np.int64)
                read = collated(indices, [sample for _, sample in chunk], self.collate) if chunk else None
            position += len(chunk)
            if read is not None:
                self.failures.update(read.failures)
                if len(read.indices):
                    yield read.indices, read.batch
            if len(chunk) < last - first:
                self._check_end(position, start)
                return

    def _check_end(self, position: int, start: int) -> None:
        """Refuse an iterable that ended at ``position`` if that is too early, or not where it said."""
        if position == 0:
            raise DatasetError(NO_SAMPLES)
        if position < start or (self.length is not None and position != self.length):
            expected = f"at least {start}" if self.length is None else self.length
            raise DatasetError(
                f"the dataset ended after {position} samples and should hold {expected}; pass one whose length does "
                "not change"
            )

    def _samples(self) -> Iterator[tuple[int, Any]]:
        """Wanted samples with their index. Each is drawn right after seeding with its index."""
        seed(0)
        iterator = iter(self._dataset)
        wanted = None if self._selection is None else iter(self._selection.tolist())
        target = None if wanted is None else next(wanted, None)
        index = 0
        while wanted is None or target is not None:
            seed(index)
            try:
                sample = next(iterator)
            except StopIteration:
                return
            if wanted is None:
                yield index, sample
            while target == index and wanted is not None:
                yield index, sample
                target = next(wanted, None)
            index += 1

    def select(self, indices: Sequence[int] | Indices) -> Source:
        positions = checked_indices(indices, self.length)
        selection = positions if self._selection is None else self._selection[positions]
        return IterableSource(self._dataset, self.collate, np.sort(selection))
