"""Where scores go: parts of a fixed number of rows, in memory or as Parquet files that are either whole or absent."""

from __future__ import annotations

import errno
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from diffin import reading
from diffin.errors import ScoringError
from diffin.files import PART_SUFFIX, read_json, write_atomically, write_json
from diffin.scoring.columns import column_type
from diffin.scoring.manifest import Manifest

if TYPE_CHECKING:
    import pyarrow as pa

MANIFEST = "scores.json"
_LONGEST_NUMBER = 15
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Parts(ABC):
    """Numbered tables of scores."""

    @abstractmethod
    def finished(self) -> dict[int, int]:
        """The number of rows of every part that is there, by its number.

        Raises:
            ScoringError: a part is damaged; it is named.
        """

    @abstractmethod
    def write(self, number: int, table: pa.Table) -> None:
        """Add a part. It is there completely or not at all.

        Raises:
            ScoringError: it cannot be written.
        """

    @abstractmethod
    def read(self, number: int, columns: Sequence[str] | None = None) -> pa.Table:
        """The columns of a part, all of them for ``None``.

        Raises:
            ScoringError: the part is missing or damaged; it is named.
        """

    @abstractmethod
    def write_manifest(self, manifest: Manifest) -> None: ...


class MemoryParts(Parts):
    """Parts that live as long as the process."""

    def __init__(self) -> None:
        self._tables: dict[int, pa.Table] = {}

    def finished(self) -> dict[int, int]:
        return {number: table.num_rows for number, table in self._tables.items()}

    def write(self, number: int, table: pa.Table) -> None:
        self._tables[number] = table

    def read(self, number: int, columns: Sequence[str] | None = None) -> pa.Table:
        table = self._tables[number]
        return table if columns is None else table.select(list(columns))

    def write_manifest(self, manifest: Manifest) -> None:
        del manifest  # The scores hold it.


class FolderParts(Parts):
    """Parts as Parquet files ``part-00000.parquet``, ... beside a manifest ``scores.json``."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def manifest(self) -> Manifest | None:
        """The manifest, ``None`` where no scoring has begun.

        Raises:
            ScoringError: it is damaged, or parts lie there without one.
        """
        try:
            return Manifest.from_json(read_json(self.path / MANIFEST))
        except (FileNotFoundError, NotADirectoryError):
            if self._files():
                raise ScoringError(
                    f"output={str(self.path)!r} holds parts of scores and no {MANIFEST}, so it is unknown what they "
                    "were computed from; pass another output, or resume=False to replace them"
                ) from None
            return None
        except (OSError, ValueError) as error:
            raise ScoringError(
                f"{self.path / MANIFEST} is damaged ({error}); pass another output, or resume=False to start again"
            ) from None

    def prepare(self) -> None:
        """Make the folder, and remove what an interrupted write has left."""
        with self._writing(MANIFEST):
            self.path.mkdir(parents=True, exist_ok=True)
            for leftover in self.path.glob(f"part-*.parquet*{PART_SUFFIX}"):
                leftover.unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove the scores, and nothing else, from the folder."""
        # The manifest goes first: were this interrupted, no part would pass for one of complete scores.
        (self.path / MANIFEST).unlink(missing_ok=True)
        for file in self._files().values():
            file.unlink()

    def finished(self) -> dict[int, int]:
        return {number: self._rows(file) for number, file in sorted(self._files().items())}

    def numbers(self) -> set[int]:
        """The numbers of the parts that are there, their contents not looked at."""
        return set(self._files())

    def has(self, number: int) -> bool:
        """Whether a part is there, its contents not looked at."""
        return self._file(number).exists()

    def write(self, number: int, table: pa.Table) -> None:
        import pyarrow.parquet as pq

        file = self._file(number)
        with self._writing(file.name), write_atomically(file, unique=True) as part:
            # Scores do not repeat, so a dictionary would only cost time.
            pq.write_table(table, part, compression="zstd", use_dictionary=False, row_group_size=max(1, table.num_rows))

    def read(self, number: int, columns: Sequence[str] | None = None) -> pa.Table:
        file = self._file(number)
        try:
            if columns is None:
                return reading.table(file)
            return reading.table(file, {name: column_type(name) for name in columns})
        except FileNotFoundError:
            raise ScoringError(f"{file} is missing; score again with the same output to write it") from None
        except (OSError, ValueError) as error:
            raise self._damaged(file, error) from None

    def write_manifest(self, manifest: Manifest) -> None:
        with self._writing(MANIFEST):
            write_json(self.path / MANIFEST, manifest.to_json())

    def _file(self, number: int) -> Path:
        return self.path / f"part-{number:05d}.parquet"

    def _files(self) -> dict[int, Path]:
        found = {}
        for file in self.path.glob("part-*.parquet"):
            digits = file.stem.removeprefix("part-")
            if digits.isascii() and digits.isdecimal() and len(digits) <= _LONGEST_NUMBER:
                found[int(digits)] = file
        return found

    def _rows(self, file: Path) -> int:
        try:
            return reading.table_rows(file)
        except (OSError, ValueError) as error:
            raise self._damaged(file, error) from None

    @staticmethod
    def _damaged(file: Path, error: Exception) -> ScoringError:
        reason = reading.first_line(error)
        return ScoringError(
            f"{file} is damaged ({reason}); delete it and score again with the same output to write it anew"
        )

    @contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            advice = "make it writable, or pass another output"
            if error.errno in _FULL:
                advice = f"{self._space()}make room, then score again with the same output: finished parts are kept"
            reason = error.strerror or str(error)
            raise ScoringError(f"output={str(self.path)!r}: {name} cannot be written ({reason}); {advice}") from error

    def _space(self) -> str:
        try:
            free = shutil.disk_usage(self.path).free
        except OSError:
            return ""
        return f"{free / 2**20:.1f} MiB are free there; "


def missing_runs(finished: Mapping[int, int], length: int | None, part_rows: int) -> list[tuple[int, int | None]]:
    """The ranges of positions that no finished part holds, each from the start of a part; ``None`` for the end.

    Raises:
        ScoringError: a finished part has another number of rows than belong to it.
    """
    last = max(finished, default=-1)
    ended = length is None and finished.get(last, part_rows) < part_rows
    for number, rows in finished.items():
        left = part_rows if length is None else length - number * part_rows
        expected = max(0, min(part_rows, left))
        if rows != expected and not (ended and number == last):
            raise ScoringError(
                f"part {number} of the scores holds {rows} rows and should hold {expected}; delete it and score again "
                "with the same output to write it anew"
            )
    count = last + 1 if length is None else -(-length // part_rows)
    runs: list[tuple[int, int | None]] = []
    for number in range(count):
        if number in finished:
            continue
        start, stop = number * part_rows, (number + 1) * part_rows
        stop = stop if length is None else min(stop, length)
        if runs and runs[-1][1] == start:
            runs[-1] = (runs[-1][0], stop)
        else:
            runs.append((start, stop))
    if length is None and not ended:
        runs.append((count * part_rows, None))
    return runs
