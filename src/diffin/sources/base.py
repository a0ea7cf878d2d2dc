"""What can be read: samples in a fixed order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from diffin.batches import Batch
from diffin.errors import DatasetError, UnreadableError

Indices = npt.NDArray[np.int64]
Collate = Callable[[list[Any]], Batch]


NO_SAMPLES = "the dataset is empty; pass one with at least one sample"


class Source(ABC):
    """Samples in a fixed order.

    Attributes:
        length: the number of samples, ``None`` when it is unknown before the end.
        random_access: whether any sample can be read without reading those before it.
        collate: what makes a batch of a list of samples.
        keyed: whether samples have a key of their own.
        failures: why a sample could not be read, by its index: of those that :meth:`batches` has left out so far.
    """

    length: int | None
    random_access: bool
    collate: Collate
    keyed: bool = False

    def __init__(self) -> None:
        self.failures: dict[int, str] = {}

    @abstractmethod
    def batches(
        self, batch_size: int, start: int = 0, stop: int | None = None, *, align: int | None = None
    ) -> Iterator[tuple[Indices, Batch]]:
        """Read the samples at positions ``start`` (inclusive) to ``stop`` (exclusive, ``None`` for the end).

        Args:
            batch_size: samples in a batch; the last one may hold fewer.
            start: first position.
            stop: position after the last one; past the end of the dataset, its end.
            align: no batch holds samples from both sides of a multiple of ``align``.

        Yields:
            Indices into the dataset, Int64[ndarray, "B"], and what the collate function made of the samples. Samples that
            cannot be read are in neither; why is in :attr:`failures` when the next batch is there, or reading has ended.

        Raises:
            DatasetError: the dataset is empty, or its length is not what it was.
        """

    def every(self, batch_size: int, start: int = 0, stop: int | None = None) -> Iterator[tuple[Indices, Batch]]:
        """As :meth:`batches`, for what needs every sample: one that cannot be read ends it.

        Raises:
            UnreadableError: saying which, before the batch that would lack it.
        """
        earlier = dict(self.failures)
        self.failures.clear()
        try:
            for indices, batch in self.batches(batch_size, start, stop):
                self._refuse_failures()
                yield indices, batch
            self._refuse_failures()
        finally:
            self.failures.update({**earlier, **self.failures})

    @abstractmethod
    def select(self, indices: Sequence[int] | Indices) -> Source:
        """The samples at ``indices`` of this source, in ascending order; batches keep the indices of the dataset.

        Raises:
            DatasetError: an index is out of range; in a source of unknown length, that shows when it is read.
        """

    def keys(self, indices: Indices) -> list[str]:
        """The key of each of the samples at ``indices`` of the dataset.

        Raises:
            DatasetError: samples have no key of their own.
        """
        raise DatasetError(
            "the samples of this dataset have no key of their own; pass diffin.sources.Keyed(dataset, keys)"
        )

    def fetch(self, indices: Indices) -> Batch:
        """What the collate function makes of the samples at ``indices``, in that order, repetitions included.

        Raises:
            DatasetError: samples can only be read in order.
            UnreadableError: one of them cannot be read.
        """
        raise DatasetError(
            "the training set can only be read in order, and repeating a training needs its batches by index; pass a "
            "map-style dataset, with __getitem__ and __len__"
        )

    def _refuse_failures(self) -> None:
        for index, reason in self.failures.items():
            raise needed(index, reason)

    def _check(self, batch_size: int, start: int, stop: int | None) -> None:
        if batch_size < 1:
            raise DatasetError(f"batch_size={batch_size}; pass 1 or more")
        if start < 0 or (stop is not None and stop < start) or (self.length is not None and start > self.length):
            size = "unknown length" if self.length is None else f"{self.length} samples"
            raise DatasetError(
                f"positions {start} to {stop} do not lie in a dataset of {size}; has its length changed?"
            )


def needed(index: int, reason: str) -> UnreadableError:
    """What is raised where all samples must be read."""
    return UnreadableError(reason, f"sample {index} of the dataset is needed here, and cannot be read: {reason}")


def ranges(start: int, stop: int | None, size: int, align: int | None) -> Iterator[tuple[int, int]]:
    """First and last position of each batch; ``stop=None`` goes on for ever."""
    while stop is None or start < stop:
        end = start + size
        if stop is not None:
            end = min(end, stop)
        if align is not None:
            end = min(end, (start // align + 1) * align)
        yield start, end
        start = end


def checked_indices(indices: Sequence[int] | Indices, length: int | None) -> Indices:
    """``indices`` in ascending order, or a DatasetError for one that cannot be in a dataset of that length."""
    array = np.asarray(indices)
    if array.ndim != 1 or (len(array) and array.dtype.kind not in "iu"):
        raise DatasetError(
            f"indices must be whole numbers in one dimension, and are {array.dtype} of shape {array.shape}"
        )
    outside = array[(array < 0) | (array >= (np.inf if length is None else length))]
    if len(outside):
        allowed = "0 or more" if length is None else f"0 to {length - 1}"
        raise DatasetError(f"index {int(outside[0])} is not in a dataset of {length or 'some'} samples; pass {allowed}")
    return np.sort(array.astype(np.int64))


def distinct_indices(samples: Sequence[int] | Indices, length: int | None) -> Indices:
    """A set of samples, ascending: at least one, and none twice.

    Raises:
        DatasetError: it is none, or an index cannot be in a dataset of that length.
    """
    chosen = checked_indices(samples, length)
    if not len(chosen):
        raise DatasetError("samples is empty; pass the index of at least one sample of the training set")
    if len(np.unique(chosen)) < len(chosen):
        raise DatasetError("samples: an index comes twice; pass each once")
    return chosen
