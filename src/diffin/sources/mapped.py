"""Reading a dataset that gives any sample by its index."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from diffin.batches import Batch
from diffin.errors import DatasetError
from diffin.sources.base import NO_SAMPLES, Collate, Indices, Source, checked_indices, needed, ranges
from diffin.sources.keyed import keys_of
from diffin.sources.reading import Read, collated, read_items
from diffin.sources.seeding import caller_generators_kept, seed


class MapSource(Source):
    """Samples of a map-style dataset, all or those of a selection."""

    random_access = True

    def __init__(self, dataset: Any, collate: Collate, workers: int, selection: Indices | None = None) -> None:
        super().__init__()
        self._dataset, self.collate, self._workers, self._selection = dataset, collate, workers, selection
        self.length: int = len(dataset) if selection is None else len(selection)
        self.keyed = keys_of(dataset) is not None
        if self.length == 0:
            raise DatasetError(NO_SAMPLES)

    def batches(
        self, batch_size: int, start: int = 0, stop: int | None = None, *, align: int | None = None
    ) -> Iterator[tuple[Indices, Batch]]:
        self._check(batch_size, start, stop)
        stop = self.length if stop is None else min(stop, self.length)
        chunks = _Chunks(self._selection, start, stop, batch_size, align)
        return self._readable(chunks, 0 if stop - start <= batch_size else self._workers)

    def read(self, lists: Iterable[Indices]) -> Iterator[Read]:
        """What :meth:`fetch` makes of one list after the other, without what cannot be read, by the workers if there are any.

        Args:
            lists: of positions of this source.
        """
        return self._read(lists if self._selection is None else _Selected(lists, self._selection), self._workers)

    def _readable(self, lists: Iterable[Indices], workers: int) -> Iterator[tuple[Indices, Batch]]:
        for read in self._read(lists, workers):
            self.failures.update(read.failures)
            if len(read.indices):
                yield read.indices, read.batch

    def _read(self, lists: Iterable[Indices], workers: int) -> Iterator[Read]:
        fetch = _Fetch(self._dataset, self.collate)
        if workers == 0:
            return (fetch[indices] for indices in lists)
        # A generator of its own: the loader draws a seed for its workers, and must not draw it from the caller's.
        return iter(
            DataLoader(
                fetch,
                batch_size=None,
                sampler=lists,
                collate_fn=_unchanged,
                num_workers=workers,
                generator=torch.Generator(),
            )
        )

    def keys(self, indices: Indices) -> list[str]:
        found = keys_of(self._dataset)
        return super().keys(indices) if found is None else found(indices.tolist())

    def fetch(self, indices: Indices) -> Batch:
        wanted = indices if self._selection is None else self._selection[indices]
        read = _Fetch(self._dataset, self.collate)[wanted]
        if read.failures:
            raise needed(*next(iter(read.failures.items())))
        return read.batch

    def select(self, indices: Sequence[int] | Indices) -> Source:
        positions = checked_indices(indices, self.length)
        selection = positions if self._selection is None else self._selection[positions]
        return MapSource(self._dataset, self.collate, self._workers, np.sort(selection))


class _Chunks:
    """The indices of each batch, made as they are needed, so that memory does not grow with the dataset."""

    def __init__(self, selection: Indices | None, start: int, stop: int, batch_size: int, align: int | None) -> None:
        self._selection = selection
        self._range = (start, stop, batch_size, align)

    def __iter__(self) -> Iterator[Indices]:
        for first, last in ranges(*self._range):
            yield np.arange(first, last, dtype=np.int64) if self._selection is None else self._selection[first:last]


@dataclass(frozen=True)
class _Selected:
    """Indices of the dataset for positions in a selection."""

    lists: Iterable[Indices]
    selection: Indices

    def __iter__(self) -> Iterator[Indices]:
        return (self.selection[positions] for positions in self.lists)


class _Fetch(Dataset[Read]):
    """A dataset whose items are batches, by their indices; runs in this process or in a worker."""

    def __init__(self, dataset: Any, collate: Collate) -> None:
        self._dataset, self._collate = dataset, collate

    def __getitem__(self, indices: Indices) -> Read:
        with caller_generators_kept():
            samples = read_items(self._dataset, indices.tolist(), lambda place: seed(int(indices[place])))
            return collated(indices, samples, self._collate)


def _unchanged(read: Any) -> Any:
    return read
