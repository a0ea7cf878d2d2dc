"""Which samples of a dataset stay, and under which labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from diffin.errors import DatasetError
from diffin.sources import Indices


@dataclass(frozen=True, eq=False)
class Chosen:
    """What stays of the samples that were scored.

    Attributes:
        size: N, how many were scored.
        index: Int64[ndarray, "n"], positions of those that stay, ascending.
        given: Int64[ndarray, "N"], the class of every sample when it was scored; ``None`` if that is not known.
        labels: Int64[ndarray, "n"], the class that each of ``index`` shall have; ``None`` for the one it has.

    Raises:
        DatasetError: the arrays do not fit each other, or nothing stays.
    """

    size: int
    index: Indices
    given: Indices | None = None
    labels: Indices | None = None

    def __post_init__(self) -> None:
        index = np.asarray(self.index)
        if index.ndim != 1 or not len(index) or index.dtype.kind not in "iu":
            raise DatasetError(
                "index must be whole numbers in one dimension, at least one; nothing else can be written"
            )
        if index[0] < 0 or index[-1] >= self.size or (np.diff(index.astype(np.int64)) <= 0).any():
            raise DatasetError(f"index must ascend within 0 to {self.size - 1}, each sample once; sort it")
        if self.given is not None and len(self.given) != self.size:
            raise DatasetError(
                f"given holds {len(self.given)} classes for {self.size} samples; pass one of each sample"
            )
        if self.labels is not None and (self.given is None or len(self.labels) != len(index)):
            raise DatasetError(
                f"labels are of the {len(index)} samples of index, and need given, the classes when they were scored"
            )

    @property
    def relabelled(self) -> dict[int, int]:
        """New class of each sample that stays under another label, by its position."""
        if self.labels is None or self.given is None:
            return {}
        changed = np.flatnonzero(self.labels != self.given[self.index])
        return dict(zip(self.index[changed].tolist(), self.labels[changed].tolist(), strict=True))

    def within(self, start: int, stop: int) -> Indices:
        """Int64[ndarray, "k"], those that stay of positions ``start`` to ``stop``, exclusive, counted from ``start``."""
        first, last = np.searchsorted(self.index, (start, stop))
        found: Indices = self.index[first:last].astype(np.int64) - start
        return found

    def among(self, count: int) -> Iterator[bool]:
        """For each of ``count`` positions, in order, whether it stays."""
        stays = np.zeros(count, dtype=bool)
        stays[self.index] = True
        return iter(stays.tolist())
