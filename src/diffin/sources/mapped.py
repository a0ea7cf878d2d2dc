"""Reading a dataset that gives any sample by its index."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from diffin.batches import Batch
from diffin.errors import DatasetError
from diffin.sources.base import NO_SAMPLES, Collate, Indices, Source, checked_indices, ranges
from diffin.sources.kinds import is_hugging_face
from diffin.sources.seeding import caller_generators_kept, seed


class MapSource(Source):
    """Samples of a map-style dataset, all or those of a selection."""

    random_access = True

    def __init__(self, dataset: Any, collate: Collate, workers: int, selection: Indices | None = None) -> None:
        super().__init__()
        self._dataset, self.collate, self._workers, self._selection = dataset, collate, workers, selection
        self.length: int = len(dataset) if selection is None else len(selection)
        if self.length == 0:
            raise DatasetError(NO_SAMPLES)

    def batches(
        self, batch_size: int, start: int = 0, stop: int | None = None, *, align: int | None = None
    ) -> Iterator[tuple[Indices, Batch]]:
        self._check(batch_size, start, stop)
        stop = self.length if stop is None else min(stop, self.length)
        chunks = _Chunks(self._selection, start, stop, batch_size, align)
        fetch = _Fetch(self._dataset, self.collate)
        if self._workers == 0 or stop - start <= batch_size:
            return ((indices, fetch[indices]) for indices in chunks)
        # A generator of its own: the loader draws a seed for its workers, and must not draw it from the caller's.
        loader: Iterable[Batch] = DataLoader(
            fetch,
            batch_size=None,
            sampler=chunks,
            collate_fn=_unchanged,
            num_workers=self._workers,
            generator=torch.Generator(),
        )
        return zip(chunks, loader, strict=True)

    def fetch(self, indices: Indices) -> Batch:
        return _Fetch(self._dataset, self.collate)[indices if self._selection is None else self._selection[indices]]

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


class _Fetch(Dataset[Batch]):
    """A dataset whose items are batches, by their indices; runs in this process or in a worker."""

    def __init__(self, dataset: Any, collate: Collate) -> None:
        self._dataset, self._collate = dataset, collate
        # A column store reads many rows at once far faster than one by one; only a custom transform can be random.
        self._at_once = is_hugging_face(dataset) and dataset.format["type"] != "custom"

    def __getitem__(self, indices: Indices) -> Batch:
        with caller_generators_kept():
            if self._at_once:
                return self._collate(list(self._dataset.__getitems__(indices.tolist())))
            return self._collate([self._sample(index) for index in indices.tolist()])

    def _sample(self, index: int) -> Any:
        seed(index)
        try:
            return self._dataset[index]
        except Exception as error:
            error.add_note(f"diffin was reading sample {index} of the dataset")
            raise


def _unchanged(batch: Batch) -> Batch:
    return batch
