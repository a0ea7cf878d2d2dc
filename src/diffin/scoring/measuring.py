"""Measuring parts: the work that every process of every engine does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from diffin.errors import DatasetError
from diffin.scoring.columns import Rows, joined, to_table
from diffin.scoring.engine import Engine
from diffin.scoring.manifest import Manifest
from diffin.sources import Source

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Measuring:
    """What measures parts of the samples of a source. Use it inside :func:`diffin.task.frozen`.

    Attributes:
        engine: measures batches.
        source: the samples.
        manifest: how; the same in every process.
    """

    engine: Engine
    source: Source
    manifest: Manifest

    def parts(
        self, start: int, stop: int | None, advance: Callable[[int], None] = lambda amount: None
    ) -> Iterator[tuple[int, pa.Table]]:
        """Measure the samples at positions ``start``, which begins a part, to ``stop``, which ends one.

        Args:
            start: position of the first sample.
            stop: position after the last one, ``None`` for the end of a source of unknown length.
            advance: called with the number of samples that were measured since.

        Yields:
            Number and table of each part, in order.

        Raises:
            DatasetError: the source ended before it should.
        """
        size = self.manifest.part_rows
        # To its end, rather than to its length, so that an iterable that holds more than it says is noticed.
        until = None if stop == self.manifest.length else stop
        batches = self.source.batches(self.manifest.batch_size, start, until, align=size)
        number = start // size
        for measured in _by_part(self.engine.measure(batches, advance), size, stop):
            while number < measured.index[0] // size:  # Not one sample of these could be read.
                yield number, self._table(None, number, stop)
                number += 1
            yield number, self._table(measured, number, stop)
            number += 1
        while stop is not None and number * size < stop:
            yield number, self._table(None, number, stop)
            number += 1

    def _table(self, rows: Rows | None, number: int, stop: int | None) -> pa.Table:
        """The table of a part, with a row for every sample of it that could not be read."""
        manifest = self.manifest
        rows = self._filled(rows, number * manifest.part_rows, stop)
        keys = self.source.keys(rows.index) if manifest.keyed else None
        return to_table(rows, manifest.steps, manifest.terms, keys=keys, failures=self.source.failures)

    def _filled(self, rows: Rows | None, first: int, stop: int | None) -> Rows:
        """The rows of a part, and empty ones for the samples of it that were left out."""
        last = first + self.manifest.part_rows
        found = np.empty(0, dtype=np.int64) if rows is None else rows.index
        if stop is None:
            # Where nobody knows how many there are, only what is known to be missing can be.
            left_out = [index for index in self.source.failures if first <= index < last]
            missing = np.setdiff1d(np.array(left_out, dtype=np.int64), found)
        else:
            last = min(last, stop)
            missing = np.setdiff1d(np.arange(first, last, dtype=np.int64), found)
        for index in missing.tolist():
            if index not in self.source.failures:
                raise DatasetError(
                    f"the dataset ended after {index} samples and should hold at least {last}; pass one whose length "
                    "does not change"
                )
        if rows is not None and not len(missing):
            return rows
        nothing = np.full((len(missing), len(self.manifest.steps)), np.nan)
        lacking = Rows(missing, nothing, nothing)
        return lacking if rows is None else _ascending([rows, lacking])


def _by_part(measured: Iterable[Rows], part_rows: int, stop: int | None) -> Iterator[Rows]:
    """Rows gathered by the part that they are of, each as soon as it is whole. No batch reaches over the end of a part."""
    pending: list[Rows] = []
    held = 0
    for rows in measured:
        # Samples that are there as company of others have no index.
        own = rows if (rows.index >= 0).all() else rows.at(np.flatnonzero(rows.index >= 0))
        if not len(own.index):
            continue
        number = own.index[0] // part_rows
        if pending and pending[0].index[0] // part_rows != number:
            yield _ascending(pending)
            pending, held = [], 0
        pending.append(own)
        held += len(own.index)
        end = (number + 1) * part_rows
        if held == (end if stop is None else min(end, stop)) - number * part_rows:
            yield _ascending(pending)
            pending, held = [], 0
    if pending:
        yield _ascending(pending)


def _ascending(parts: list[Rows]) -> Rows:
    rows = joined(parts)
    if (np.diff(rows.index) > 0).all():
        return rows
    return rows.at(np.argsort(rows.index))
