"""Samples in groups, for losses that are coupled: which samples are taken together, and nothing else, decides their losses.

For scoring, every part of a dataset is cut into windows of consecutive positions, a window is permuted by a generator that is
seeded with the seed and its first position, and cut into groups of one size. The last group of a window is filled up with
other samples of the window, which are there as company: their index is -1, and their rows belong to another group. So a part
is composed in the same way whichever process measures it, and reading stays close to the order of the dataset.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from diffin.batches import Batch
from diffin.errors import DatasetError
from diffin.sources.base import Indices, Source
from diffin.sources.mapped import MapSource

COMPANY = -1
"""The index of a sample that is in a batch for the losses of others only."""

_WINDOW = 64


@dataclass(frozen=True)
class Group:
    """Samples whose losses are taken together.

    Attributes:
        positions: Int64[ndarray, "G"], of the samples, company last.
        own: how many of them are not company.
    """

    positions: Indices
    own: int


def groups_of(first: int, last: int, length: int, group_size: int, seed: int) -> list[Group]:
    """The groups of the window of positions ``first`` to ``last`` (exclusive).

    Args:
        first: first position of the window.
        last: position after its last one.
        length: of the dataset: company is drawn from all of it where the window does not suffice.
        group_size: of every group, unless the dataset is smaller.
        seed: of the permutation, with ``first``.
    """
    generator = np.random.default_rng([seed, first])
    order = first + generator.permutation(last - first)
    found = [Group(order[k : k + group_size], group_size) for k in range(0, len(order), group_size)]
    tail = found.pop().positions
    lacking = group_size - len(tail)
    inside = order[: len(order) - len(tail)]
    company = generator.choice(inside, min(lacking, len(inside)), replace=False) if lacking else inside[:0]
    beyond = min(lacking - len(company), length - len(order))
    if beyond > 0:
        outside = generator.choice(length - len(order), beyond, replace=False)
        company = np.concatenate([company, np.where(outside < first, outside, outside + len(order))])
    return [*found, Group(np.concatenate([tail, company]).astype(np.int64), len(tail))]


class Composed(Source):
    """A source whose batches are groups; every sample is in one of them, and some come once more as company.

    ``fetch``, ``select`` and ``keys`` are those of the source.

    Args:
        source: the samples, by position.
        group_size: samples of a group.
        seed: of the composition.
        window: how many consecutive samples are mixed; ``None`` for 64 groups.

    Raises:
        DatasetError: samples can only be read in order, or a number makes no sense.
    """

    random_access = True

    def __init__(self, source: Source, group_size: int, seed: int = 0, *, window: int | None = None) -> None:
        super().__init__()
        self.source = _by_position(source)
        self.length: int = self.source.length
        self.window = _WINDOW * group_size if window is None else window
        if group_size < 2 or self.window < group_size or seed < 0:
            raise DatasetError(
                f"group_size={group_size}, window={self.window}, seed={seed}; pass a group of 2 or more, a window of at "
                "least that many, and a seed of 0 or more"
            )
        self.group_size, self.seed = group_size, seed
        self.collate, self.keyed = source.collate, source.keyed

    def describe(self) -> dict[str, int]:
        """JSON-able: what decides the composition beside the dataset and its parts."""
        return {"size": self.group_size, "window": self.window, "seed": self.seed}

    def batches(
        self, batch_size: int, start: int = 0, stop: int | None = None, *, align: int | None = None
    ) -> Iterator[tuple[Indices, Batch]]:
        """Read the groups of the parts from ``start`` to ``stop``.

        Args:
            batch_size: the size of a group.
            start: first position, where a part begins.
            stop: position after the last one, where a part ends; ``None`` for the end.
            align: positions of a part; ``None`` for one part.

        Yields:
            Indices into the dataset, Int64[ndarray, "G"], -1 for company, and the group. A sample that cannot be read is left
            out, as is a group with none but company.

        Raises:
            DatasetError: ``batch_size`` is not that of a group, or a part would be cut.
        """
        self._check(batch_size, start, stop)
        stop = self.length if stop is None else min(stop, self.length)
        part = self.length if align is None else align
        if batch_size != self.group_size:
            raise DatasetError(f"batch_size={batch_size}; pass {self.group_size}, the size of the groups")
        if start % part or (stop % part and stop != self.length):
            raise DatasetError(
                f"positions {start} to {stop} cut a part of {part} samples, and its groups; pass whole parts"
            )
        windows = _Windows(self, start, stop, part)
        for group, read in zip(windows.groups(), self.source.read(windows), strict=True):
            self.failures.update(read.failures)
            indices = np.where(read.places < group.own, read.indices, COMPANY)
            if (indices != COMPANY).any():
                yield indices, read.batch

    def select(self, indices: Sequence[int] | Indices) -> Source:
        return self.source.select(indices)

    def fetch(self, indices: Indices) -> Batch:
        return self.source.fetch(indices)

    def keys(self, indices: Indices) -> list[str]:
        return self.source.keys(indices)


@dataclass(frozen=True)
class _Windows:
    """The positions of the groups of some parts, made as they are needed."""

    composed: Composed
    start: int
    stop: int
    part: int

    def __iter__(self) -> Iterator[Indices]:
        return (group.positions for group in self.groups())

    def groups(self) -> Iterator[Group]:
        whole = self.composed
        for beginning in range(self.start, self.stop, self.part):
            end = min(beginning + self.part, whole.length)
            for first in range(beginning, end, whole.window):
                last = min(first + whole.window, end)
                yield from groups_of(first, last, whole.length, whole.group_size, whole.seed)


def shuffled(
    source: Source, group_size: int, seed: Sequence[int], *, share: tuple[int, int] = (0, 1)
) -> Iterator[Batch]:
    """All samples once, in groups drawn by the seed; what is left over of more than one group is left out.

    A group of fewer has another loss, lower by the logarithm of how many fewer. A sample that cannot be read is left out.

    Args:
        source: the samples, by position.
        group_size: of a group.
        seed: of their composition.
        share: (k, n) for one group in n, from the k-th on.

    Raises:
        DatasetError: samples can only be read in order.
    """
    samples = _by_position(source)
    order = np.random.default_rng(list(seed)).permutation(samples.length).astype(np.int64)
    kept = whole(samples.length, group_size)
    groups = [order[k : min(k + group_size, kept)] for k in range(0, kept, group_size)]
    yield from (read.batch for read in samples.read(groups[share[0] :: share[1]]) if len(read.indices))


def in_order(source: Source, group_size: int) -> Iterator[Batch]:
    """Groups of consecutive samples; what is left over of more than one group is left out, as in :func:`shuffled`.

    Raises:
        UnreadableError: a sample cannot be read.
    """
    if source.length is not None:
        yield from (batch for _, batch in source.every(group_size, stop=whole(source.length, group_size)))
        return
    before: tuple[Indices, Batch] | None = None
    for number, (indices, batch) in enumerate(source.every(group_size)):
        if before is not None:
            yield before[1]
        before = (indices, batch) if number == 0 or len(indices) == group_size else None
    if before is not None:
        yield before[1]


def whole(length: int, group_size: int) -> int:
    """How many of so many samples are in whole groups; all of them if they do not fill one."""
    return length if length < group_size else length - length % group_size


def _by_position(source: Source) -> MapSource:
    if not isinstance(source, MapSource):
        raise DatasetError(
            "the samples can only be read in order, and those of a coupled loss are taken together by index; pass a "
            "map-style dataset, with __getitem__ and __len__"
        )
    return source
