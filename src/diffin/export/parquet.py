"""Parquet files, read and written by row groups."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffin.errors import DatasetError
from diffin.export.chosen import Chosen
from diffin.export.data import Data
from diffin.parquet_footer import open_parquet
from diffin.reading import check_claims
from diffin.sources.parquet import shortened

if TYPE_CHECKING:
    import pyarrow as pa

LABELS = ("label", "labels")


class Parquet(Data):
    """Rows of Parquet files, one file after the other.

    What is written has the same files, columns, types, metadata and compression; row groups that lose all rows are left out.

    Args:
        paths: the files, in order.
        label_column: the column of labels; ``None`` for one called ``label`` or ``labels``.
        key_column: the column of ids; ``None`` for the name of the file and the row in it.

    Raises:
        DatasetError: a file cannot be read, or has no such column.
    """

    def __init__(
        self, paths: Sequence[Path], *, label_column: str | None = None, key_column: str | None = None
    ) -> None:
        self.files = tuple(paths)
        self.where = str(paths[0]) if len(paths) == 1 else f"{paths[0]} to {paths[-1].name}"
        self._rows, self.label, self._key = [], None, key_column
        for path in paths:
            with _read(path) as file:
                self._rows.append(file.metadata.num_rows)
                label = column_named(label_column, LABELS, file.schema_arrow.names, str(path))
                column_named(key_column, (), file.schema_arrow.names, str(path), "key_column")
            if len(self._rows) > 1 and label != self.label:
                raise DatasetError(f"{path} has other columns than {paths[0]}; pass files of one dataset")
            self.label = label
        self.size = sum(self._rows)

    def labels(self) -> Iterator[Any]:
        return (label for path in self.files for label in _column(path, self.label))

    def keys(self) -> Iterator[str]:
        for path, name, rows in zip(self.files, shortened([*map(str, self.files)]), self._rows, strict=True):
            if self._key is None:
                yield from (f"{name}:{row}" for row in range(rows))
            else:
                yield from map(str, _column(path, self._key))

    def label_of(self, number: int) -> int:
        return number

    def write(self, folder: Path, scratch: Path, chosen: Chosen, labels: Mapping[int, Any]) -> None:
        start = 0
        for path, rows in zip(self.files, self._rows, strict=True):
            end = self._write(path, folder / path.name, start, chosen, labels)
            if end != start + rows:
                raise DatasetError(f"{path} has changed while it was read; write again")
            start = end

    def _write(self, path: Path, target: Path, start: int, chosen: Chosen, labels: Mapping[int, Any]) -> int:
        import pyarrow.parquet as pq

        with _read(path) as file:
            options = {"compression": _compression(file.metadata), "version": "2.6"}
            with pq.ParquetWriter(target, file.schema_arrow, **options) as writer:
                for group in range(file.num_row_groups):
                    rows = file.metadata.row_group(group).num_rows
                    kept = chosen.within(start, start + rows)
                    if len(kept):
                        table = _row_group(file, path, group).take(kept)
                        changed = {
                            row: labels[start + position]
                            for row, position in enumerate(kept.tolist())
                            if start + position in labels
                        }
                        writer.write_table(_relabelled(table, self.label, changed), row_group_size=max(len(kept), 1))
                    start += rows
        return start


@contextmanager
def _read(path: Path) -> Iterator[Any]:
    import pyarrow as pa

    try:
        with open_parquet(path) as file:
            yield file
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} cannot be read as Parquet ({error}); pass one that can") from error
    except OSError as error:
        # Those of what is written belong to the caller.
        if error.errno is not None and error.filename is not None and str(error.filename) != str(path):
            raise
        raise DatasetError(f"{path} cannot be read as Parquet ({error}); pass one that can") from error


def _row_group(file: Any, path: Path, group: int, columns: Sequence[str] | None = None) -> pa.Table:
    """A row group, if it takes memory in proportion to its file."""
    try:
        check_claims(file.metadata, [group], path.stat().st_size)
    except ValueError as error:
        raise DatasetError(f"{path} cannot be read as Parquet ({error}); pass one that can") from None
    return file.read_row_group(group, columns=columns)


def _column(path: Path, name: str | None) -> Iterator[Any]:
    with _read(path) as file:
        for group in range(file.num_row_groups):
            yield from _row_group(file, path, group, None if name is None else [name]).column(0).to_pylist()


def _relabelled(table: pa.Table, name: str | None, labels: Mapping[int, Any]) -> pa.Table:
    """The table with some labels replaced, by row."""
    import pyarrow as pa

    if not labels:
        return table
    place = table.schema.get_field_index(name)
    field = table.schema.field(place)
    values = table.column(place).to_pylist()
    for row, label in labels.items():
        values[row] = label
    encoded = pa.types.is_dictionary(field.type)
    column = pa.array(values, type=field.type.value_type if encoded else field.type)
    if encoded:
        column = column.dictionary_encode().cast(field.type)
    return table.set_column(place, field, column)


def _compression(metadata: Any) -> str:
    """Of the first column; files with one for each column are rare."""
    if not metadata.num_row_groups or not metadata.num_columns:
        return "snappy"
    found = str(metadata.row_group(0).column(0).compression).lower()
    return "none" if found == "uncompressed" else found


def column_named(
    asked: str | None, usual: Sequence[str], names: Sequence[str], where: str, argument: str = "label_column"
) -> str | None:
    """The column of labels or keys: the one that is asked for, or the first of the usual names.

    Raises:
        DatasetError: the one that is asked for is not there, or more than once.
    """
    if asked is None:
        return next((name for name in usual if list(names).count(name) == 1), None)
    if list(names).count(asked) != 1:
        raise DatasetError(f"{where} has no single column {asked!r}; {argument} may be {', '.join(names)}")
    return asked
