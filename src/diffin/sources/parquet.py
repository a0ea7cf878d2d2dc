"""Rows of many Parquet files as a map-style data set."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from diffin.errors import DatasetError, DiffinError, UnreadableError
from diffin.parquet_footer import open_parquet
from diffin.reading import check_claims
from diffin.sources.base import Indices
from diffin.sources.locations import expanded, is_remote, opened, stamp
from diffin.sources.many_files import of_each
from diffin.sources.stored import Stored
from diffin.sources.unreadable import Unreadable, reason_of

_log = logging.getLogger(__name__)

_MOST_ROWS = 1 << 50

Groups = list[tuple[int, int, Indices]]
"""Of rows that are read at once: the number of their row group, its first position, their places in what is asked for."""


class Parquet(Stored):
    """Rows of Parquet files, one file after the other, read by row groups.

    The last row group that was read is kept, so that memory holds one and reading in order reads each once; a sample alone
    costs reading its row group. Files that cannot be opened are left out, and listed in :attr:`quarantined`.

    Args:
        files: a list of paths or of URLs that fsspec knows; or one string: a path, a folder, or a pattern with asterisks or
            braces.
        decode: makes an item of a row, e.g. :class:`diffin.sources.Pair` with the names of two columns.
        columns: those to read; ``None`` for all.
        key: the column that tells samples apart, e.g. ``"uid"``; ``None`` for the name of the file and the row in it.

    Raises:
        DatasetError: no file can be read, or one lacks a column.
    """

    def __init__(
        self,
        files: str | Path | Sequence[str | Path],
        decode: Callable[[dict[str, Any]], Any],
        *,
        columns: Sequence[str] | None = None,
        key: str | None = None,
    ) -> None:
        names = expanded(files, ".parquet")
        self.decode = decode
        self._columns, self.key = None if columns is None else list(columns), key
        found = list(of_each(self._looked_at, names))
        self._quarantined = {name: rows for name, rows in zip(names, found, strict=True) if isinstance(rows, str)}
        read = [(name, rows) for name, rows in zip(names, found, strict=True) if not isinstance(rows, str)]
        if not read:
            raise DatasetError(f"none of the {len(names)} files can be read; the first: {self._quarantined[names[0]]}")
        if self._quarantined:
            _log.warning(
                "%d of %d files cannot be read and are left out; the first: %s", len(self._quarantined), len(names),
                next(iter(self._quarantined.values())),
            )  # fmt: skip
        self.files = tuple(name for name, _ in read)
        self._short = shortened(self.files)
        # Of every row group: its file, its number in it, and the position after its last row.
        self._file = np.repeat(np.arange(len(read)), [len(rows) for _, rows in read])
        self._number = np.concatenate([np.arange(len(rows)) for _, rows in read])
        self._ends = np.cumsum(np.concatenate([rows for _, rows in read]), dtype=np.int64)
        self._held: tuple[int, Any] | None = None

    @property
    def quarantined(self) -> Mapping[str, str]:
        """Why each file that is left out cannot be read, by its name."""
        return MappingProxyType(self._quarantined)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, positions: Sequence[int]) -> list[Any]:
        found: list[Any] = [None] * len(positions)
        for group, first, places in self._by_group(positions):
            rows = [positions[place] - first for place in places.tolist()]
            try:
                # Rows as they are asked for, and no others, become objects.
                values = _rows(self._group(group), rows).to_pylist()
            except UnreadableError as error:
                values = [Unreadable(error.reason)] * len(rows)
            except Exception as error:  # of a kind for each type of column
                name = self.files[self._file[group]]
                values = [Unreadable(f"{name} holds a row that cannot be read ({reason_of(error)})")] * len(rows)
            for place, value in zip(places.tolist(), values, strict=True):
                found[place] = value
        return found

    def decoded(self, stored: dict[str, Any]) -> Any:
        return self.decode(stored)

    def keys(self, positions: Sequence[int] | Indices) -> list[str]:
        wanted = self._in_range(positions)
        found = [""] * len(wanted)
        for group, first, places in self._by_group(wanted):
            rows = [wanted[place] - first for place in places.tolist()]
            name = self.files[self._file[group]]
            if self.key is not None:
                with _reading(name) as file:
                    column = _row_group(file, int(self._number[group]), [self.key], name)
                    told = [str(value) for value in column.column(0).take(rows).to_pylist()]
            else:
                start = first - self._first_of(int(self._file[group]))
                told = [f"{self._short[self._file[group]]}:{start + row}" for row in rows]
            for place, key in zip(places.tolist(), told, strict=True):
                found[place] = key
        return found

    def _by_group(self, positions: Sequence[int]) -> Groups:
        groups = np.searchsorted(self._ends, np.asarray(positions, dtype=np.int64), side="right")
        return [
            (int(group), int(self._ends[group - 1]) if group else 0, np.flatnonzero(groups == group))
            for group in np.unique(groups)
        ]

    def _first_of(self, file: int) -> int:
        """The position of the first row of a file."""
        before = np.searchsorted(self._file, file)
        return int(self._ends[before - 1]) if before else 0

    def _group(self, group: int) -> Any:
        held = self._held
        if held is None or held[0] != group:
            held = self._held = None  # before another takes memory
            with _reading(self.files[self._file[group]]) as file:
                table = _row_group(file, int(self._number[group]), self._columns, self.files[self._file[group]])
            first = int(self._ends[group - 1]) if group else 0
            if table.num_rows != self._ends[group] - first:
                raise UnreadableError(f"{self.files[self._file[group]]} has changed since it was opened")
            held = self._held = (group, table)
        return held[1]

    def _looked_at(self, name: str) -> Indices | str:
        """The rows of each row group, or why the file cannot be read."""
        try:
            with _reading(name) as file:
                metadata, columns = file.metadata, file.schema_arrow.names
        except UnreadableError as error:
            return error.reason
        for column in (*(self._columns or ()), *((self.key,) if self.key else ())):
            if column not in columns:
                raise DatasetError(f"{name} has no column {column!r}; it has {', '.join(columns)}")
        rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        if min(rows, default=0) < 0 or sum(rows) != metadata.num_rows or sum(rows) > _MOST_ROWS:
            return f"{name} cannot be read as Parquet (it says that it has {metadata.num_rows} rows)"
        return np.array(rows, np.int64)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": None}


def _rows(table: Any, rows: list[int]) -> Any:
    # A slice costs nothing, and has no limit of 2 GiB.
    together = rows == list(range(rows[0], rows[0] + len(rows)))
    return table.slice(rows[0], len(rows)) if together else table.take(rows)


@contextmanager
def _reading(name: str) -> Iterator[Any]:
    import pyarrow as pa

    with opened(name) as file:
        try:
            yield open_parquet(file, pre_buffer=is_remote(name))
        except DiffinError:
            raise
        except Exception as error:
            if isinstance(error, MemoryError) and not isinstance(error, pa.ArrowException):
                raise
            raise UnreadableError(f"{name} cannot be read as Parquet ({reason_of(error)})") from error


def _row_group(file: Any, number: int, columns: Sequence[str] | None, name: str) -> Any:
    """A row group, if it takes memory in proportion to its file."""
    try:
        check_claims(file.metadata, [number], stamp(name).size)
    except ValueError as error:
        raise UnreadableError(f"{name} cannot be read as Parquet ({error})") from None
    return file.read_row_group(number, columns=columns, use_threads=False)


def shortened(names: Sequence[str]) -> list[str]:
    """The names without the folders that all are in."""
    parts = [re.split(r"[/\\]", name) for name in names]
    shared = sum(
        1 for _ in takewhile(lambda level: len(set(level)) == 1, zip(*(part[:-1] for part in parts), strict=False))
    )
    return ["/".join(part[shared:]) for part in parts]
