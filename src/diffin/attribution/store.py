"""Where a pairwise attribution is kept: its manifest, its working parts, the matrix, and what came out.

    attribution.json     what it was computed from, and whether it is complete
    top.parquet          the strongest samples of every query
    matrix/part-*.parquet    if asked for: the influence of every sample on every query
    parts/part-*.parquet     the strongest of some thousand samples each, until all of them are there
    directions/          what was measured

Every file is whole or absent, and is written under a temporary name first.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffin import checked, reading
from diffin.attribution.tops import Ranked, Tops
from diffin.errors import ScoringError
from diffin.files import PART_SUFFIX, check_regular, parse_json, read_json, write_atomically, write_json
from diffin.scoring.columns import Floats
from diffin.sources import Indices

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT_VERSION = 1
MANIFEST, TOP = "attribution.json", "top.parquet"
_SIDES = ("proponent", "opponent")


@dataclass(frozen=True)
class Manifest:
    """How an attribution was computed.

    Attributes:
        directions: digest and metadata of what was measured.
        queries: labels of the Q queries: positions in the query set, or labels of groups.
        grouped: whether they are groups.
        top: how many samples of either end are kept.
        matrix: whether the whole matrix is written.
        batch_size: samples measured at once.
        part_rows: samples of a part; the last one may hold fewer.
        length: samples of the training set, ``None`` if that was unknown.
        sample: digest of a few of its samples.
        device: where they were measured.
        rows: samples measured; ``None`` until all are.
        failed: indices of the samples whose loss or influence is not finite.
    """

    directions: Mapping[str, Any]
    queries: tuple[int, ...]
    grouped: bool
    top: int
    matrix: bool
    batch_size: int
    part_rows: int
    length: int | None
    sample: str
    device: str
    rows: int | None = None
    failed: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT_VERSION, "complete": self.rows is not None, **asdict(self)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Manifest:
        """Read what :meth:`to_json` wrote.

        Raises:
            ScoringError: it is of another format, or an entry is missing.
        """
        if content.get("format") != FORMAT_VERSION:
            raise ScoringError(
                f"the attribution has format {content.get('format')!r}; this version reads {FORMAT_VERSION}"
            )
        try:
            _check_entries(content)
        except ValueError as error:
            raise ScoringError(
                f"the manifest of the attribution is damaged ({error}); attribute again into another folder"
            ) from None
        known = {name: content[name] for name in cls.__dataclass_fields__}
        return cls(**{**known, "queries": tuple(known["queries"]), "failed": tuple(known["failed"])})

    def completed(self, rows: int, failed: Sequence[int]) -> Manifest:
        return replace(self, rows=rows, failed=tuple(failed))

    def differences(self, other: Manifest) -> list[str]:
        """What keeps ``other`` from going on with this run, in words."""
        found = []
        if self.directions["digest"] != other.directions["digest"]:
            found.append("the queries, the run or the estimator")
        for name in ("top", "matrix", "batch_size", "part_rows", "length"):
            there, now = getattr(self, name), getattr(other, name)
            if there != now:
                found.append(f"{name} ({there} there, {now} now)")
        if self.length == other.length and self.sample != other.sample:
            found.append("the samples of the training set")
        return found


def _check_entries(content: Mapping[str, Any]) -> None:
    """Raise ValueError for an entry that is missing, of another type, or does not fit the others."""
    checked.text(checked.mapping(content, "directions"), "digest")
    if not checked.each(content, "queries", _label):
        raise ValueError("'queries' is empty")
    for name in ("grouped", "matrix"):
        checked.flag(content, name)
    for name in ("top", "part_rows"):
        checked.whole(content, name, 1)
    checked.whole(content, "batch_size")  # 0 where a replay measures the batches that were trained on
    checked.optional(content, "length", checked.whole)
    for name in ("sample", "device"):
        checked.text(content, name)
    rows = checked.optional(content, "rows", checked.whole)
    failed = checked.each(content, "failed", checked.whole)
    if rows is not None and max(failed, default=-1) >= rows:
        raise ValueError("'failed' lists samples that are not there")


def _label(content: Mapping[str, Any], name: str) -> int:
    """Labels of groups may be negative."""
    return checked.whole(content, name, -checked.MOST)


@dataclass(frozen=True)
class Part:
    """What was found of some consecutive samples.

    Attributes:
        tops: the strongest of them; ``None`` if all failed.
        rows: how many they are.
        failed: the indices of those without an influence.
    """

    tops: Tops | None
    rows: int
    failed: tuple[int, ...]


class Store:
    """A folder of a pairwise attribution, or, without a path, parts in memory."""

    def __init__(self, path: str | Path | None) -> None:
        self.path = None if path is None else Path(path)
        self._held: dict[int, Part] = {}

    def manifest(self) -> Manifest | None:
        """The manifest, ``None`` where nothing has begun.

        Raises:
            ScoringError: it is damaged.
        """
        if self.path is None:
            return None
        try:
            return Manifest.from_json(read_json(self.path / MANIFEST))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            raise ScoringError(
                f"{self.path / MANIFEST} is damaged ({error}); pass another output, or resume=False to start again"
            ) from None

    def prepare(self) -> None:
        """Make the folders, and remove what an interrupted write has left."""
        if self.path is None:
            return
        with self._writing():
            for folder in (self.path, self.path / "parts"):
                folder.mkdir(parents=True, exist_ok=True)
                for leftover in folder.glob(f"*{PART_SUFFIX}"):
                    leftover.unlink()

    def clear(self) -> None:
        """Remove the attribution, and nothing else, from the folder; directions stay."""
        if self.path is not None:
            # The manifest goes first: were this interrupted, no part would pass for one of a known run.
            for file in (self.path / MANIFEST, self.path / TOP, *self._files("parts"), *self._files("matrix")):
                file.unlink(missing_ok=True)

    def write_manifest(self, manifest: Manifest) -> None:
        if self.path is not None:
            with self._writing():
                write_json(self.path / MANIFEST, manifest.to_json())

    def finished(self) -> dict[int, int]:
        """The number of samples of every part that is there, by its number."""
        if self.path is None:
            return {number: part.rows for number, part in self._held.items()}
        found = (file.stem.removeprefix("part-") for file in self._files("parts"))
        numbers = [int(digits) for digits in found if re.fullmatch("[0-9]{5,15}", digits)]
        return {number: self.read(number).rows for number in sorted(numbers)}

    def write(self, number: int, part: Part) -> None:
        """Add a part. It is there completely or not at all."""
        if self.path is None:
            self._held[number] = part
            return
        told = {"rows": str(part.rows), "failed": json.dumps(part.failed)}
        self._write(self.path / "parts" / f"part-{number:05d}.parquet", to_table(part.tops, None, told))

    def read(self, number: int) -> Part:
        """A part.

        Raises:
            ScoringError: it is missing or damaged; it is named.
        """
        if self.path is None:
            return self._held[number]
        file = self.path / "parts" / f"part-{number:05d}.parquet"
        table = read_table(file, top_types())
        try:
            known = table.schema.metadata or {}
            told = {name: parse_json(known.get(name.encode(), b"null")) for name in ("rows", "failed")}
            failed = checked.each(told, "failed", checked.whole)
            return Part(from_table(table) if table.num_rows else None, checked.whole(told, "rows"), failed)
        except ValueError as error:
            raise damaged(file, error) from None

    def write_matrix(self, number: int, index: Indices, influence: Floats) -> None:
        """Add a part of the matrix: one row for each sample, NaN where it has no influence."""
        import pyarrow as pa

        assert self.path is not None  # a matrix without an output was refused
        (self.path / "matrix").mkdir(exist_ok=True)
        flat = pa.array(np.ascontiguousarray(influence, dtype=np.float32).reshape(-1))
        columns = {
            "index": pa.array(index),
            "influence": pa.FixedSizeListArray.from_arrays(flat, influence.shape[1]),
        }
        self._write(self.path / "matrix" / f"part-{number:05d}.parquet", pa.table(columns))

    def copy_matrix(self, source: Path, parts: int) -> None:
        """Take over the matrix of another folder: its parts, and nothing else that lies there.

        Raises:
            ScoringError: a part is missing, or cannot be written.
        """
        assert self.path is not None
        with self._writing():
            (self.path / "matrix").mkdir(exist_ok=True)
            for number in range(parts):
                file = Path("matrix") / f"part-{number:05d}.parquet"
                check_regular(source / file)
                with write_atomically(self.path / file) as part:
                    shutil.copyfile(source / file, part)

    def finish(self, manifest: Manifest, tops: Tops) -> None:
        """Write what came out; then the parts are needed no longer."""
        if self.path is None:
            return
        self._write(self.path / TOP, to_table(tops, manifest.queries, {}))
        self.write_manifest(manifest)
        self.tidy()

    def tidy(self) -> None:
        """Remove the parts, which are needed no longer once the result is there."""
        for file in self._files("parts"):
            file.unlink()
        if self.path is not None:
            with suppress(OSError):  # there is none, or something else lies in it
                (self.path / "parts").rmdir()

    def _files(self, folder: str) -> list[Path]:
        return [] if self.path is None else sorted((self.path / folder).glob("part-*.parquet"))

    def _write(self, file: Path, table: pa.Table) -> None:
        import pyarrow.parquet as pq

        with self._writing(), write_atomically(file) as part:
            pq.write_table(
                table, part, compression="zstd", use_dictionary=["side"] if "side" in table.column_names else False
            )

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ScoringError(
                f"output={str(self.path)!r} cannot be written ({error.strerror or error}); make room or make it writable, "
                "then attribute again with the same output: finished parts are kept"
            ) from error


def to_table(tops: Tops | None, labels: tuple[int, ...] | None, told: Mapping[str, str]) -> pa.Table:
    """One row for each query, side and rank; queries by their labels, or by their numbers."""
    import pyarrow as pa

    ends = [] if tops is None else [tops.proponents, tops.opponents]
    shape = ends[0].index.shape if ends else (0, 0)
    names = np.arange(shape[0]) if labels is None else np.array(labels, dtype=np.int64)
    count = shape[0] * shape[1]
    empty = np.empty(0)
    columns = {
        "query": pa.array(np.repeat(names, 2 * shape[1]).astype(np.int64)),
        "side": pa.array(np.tile(np.repeat(np.array(_SIDES), shape[1]), shape[0]).tolist(), type=pa.string()),
        "rank": pa.array(np.tile(np.arange(shape[1], dtype=np.int32), 2 * shape[0])),
        "index": pa.array(_beside([end.index for end in ends], count, empty).astype(np.int64)),
        "influence": pa.array(_beside([end.influence for end in ends], count, empty).astype(np.float64)),
    }
    return pa.table(columns).replace_schema_metadata(dict(told))


def from_table(table: pa.Table) -> Tops:
    """What :func:`to_table` wrote.

    Raises:
        ValueError: it is something else.
    """
    index, influence = table.column("index").to_numpy(), table.column("influence").to_numpy()
    ranks = table.column("rank").to_numpy()
    if not len(ranks) or any(table.column(name).null_count for name in ("index", "influence", "rank")):
        raise ValueError("it has no rows, or rows with gaps")
    count = int(ranks.max()) + 1
    if count < 1 or len(ranks) % (2 * count) or not np.array_equal(ranks, np.arange(len(ranks)) % count):
        raise ValueError("its ranks do not count from 0 for each side of each query")
    index, influence = index.reshape(-1, 2, count), influence.reshape(-1, 2, count)
    return Tops(Ranked(index[:, 0], influence[:, 0]), Ranked(index[:, 1], influence[:, 1]))


def top_types() -> dict[str, pa.DataType]:
    """The columns of a table of the strongest."""
    import pyarrow as pa

    return {
        "query": pa.int64(), "side": pa.string(), "rank": pa.int32(), "index": pa.int64(), "influence": pa.float64()
    }  # fmt: skip


def matrix_types(queries: int) -> dict[str, pa.DataType]:
    """The columns of a part of the matrix."""
    import pyarrow as pa

    return {"index": pa.int64(), "influence": pa.list_(pa.float32(), queries)}


def read_table(file: Path, types: Mapping[str, pa.DataType] | None = None) -> pa.Table:
    """A Parquet file.

    Args:
        file: its path.
        types: of the columns to read; ``None`` for all as they are.

    Raises:
        ScoringError: it is missing or damaged.
    """
    try:
        return reading.table(file, types)
    except FileNotFoundError:
        raise ScoringError(f"{file} is missing; attribute again with the same output to write it") from None
    except (OSError, ValueError) as error:
        raise damaged(file, error) from None


def damaged(file: Path, error: Exception) -> ScoringError:
    """What to say of a file that does not hold what it should."""
    reason = reading.first_line(error)
    return ScoringError(f"{file} is damaged ({reason}); delete it and attribute again with the same output")


def _beside(ends: list[np.ndarray[Any, Any]], count: int, empty: Floats) -> np.ndarray[Any, Any]:
    """Proponents and opponents of each query one after the other."""
    return np.stack(ends, axis=1).reshape(2 * count) if count else empty
