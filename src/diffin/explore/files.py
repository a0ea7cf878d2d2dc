"""Columns that a user brings along: a Parquet file with a row for every sample."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffin import reading
from diffin.errors import DatasetError
from diffin.explore.columns import MOST_CATEGORIES, Category, Numbers, Table, Texts

if TYPE_CHECKING:
    import pyarrow as pa

_GROUP = "columns of the file"


def add_columns(table: Table, columns: Path | str | pa.Table, keys: Sequence[str] | None) -> None:
    """Add a user's columns to the table, under names that begin with ``file:``.

    Words, truth values and whole numbers of few different values become categories, other numbers are numbers, and other
    words are searched. A column ``index``, or else ``key`` where samples have keys, says which sample a row is about;
    without either, rows are in the order of the samples. Columns of any other type are left out.

    Args:
        table: to add to.
        columns: the file, or what it holds.
        keys: of the samples, if they have any.

    Raises:
        DatasetError: it cannot be read, or its rows are not about these samples, one of each at most.
    """
    content, where = _read(columns)
    rows = _rows(content, table.size, keys, where)
    for name in content.column_names:
        if name not in ("index", "key"):
            _add(table, name, content.column(name), rows)


def _read(columns: Path | str | pa.Table) -> tuple[pa.Table, str]:
    import pyarrow as pa

    if isinstance(columns, pa.Table):
        return columns, "the table of columns"
    try:
        return reading.table(Path(columns)), str(columns)
    except FileNotFoundError:
        raise DatasetError(f"columns={str(columns)!r}: there is no such file; pass a Parquet file") from None
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"columns={str(columns)!r} cannot be read as Parquet ({error}); pass a Parquet file"
        ) from None


def _rows(content: pa.Table, size: int, keys: Sequence[str] | None, where: str) -> Any:
    """The sample of every row of the file. Int64[ndarray, "rows"]."""
    if "index" in content.column_names:
        rows = np.asarray(content.column("index").to_numpy())
        if rows.dtype.kind not in "iu" or (len(rows) and not 0 <= rows.min() <= rows.max() < size):
            raise DatasetError(
                f"{where}: index must hold whole numbers from 0 to {size - 1}, the samples of the scores"
            )
    elif "key" in content.column_names and keys is not None:
        places = {key: row for row, key in enumerate(keys)}
        found = [places.get(str(key)) for key in content.column("key").to_pylist()]
        if None in found:
            strange = content.column("key")[found.index(None)].as_py()
            raise DatasetError(f"{where}: no sample of the scores has the key {strange!r}; leave such rows out")
        rows = np.array(found, dtype=np.int64)
    elif content.num_rows != size:
        raise DatasetError(
            f"{where} has {content.num_rows} rows for {size} samples; give it a row for each, or a column index that says "
            "which sample a row is about"
        )
    else:
        return np.arange(size)
    if len(np.unique(rows)) < len(rows):
        raise DatasetError(f"{where} has two rows about one sample; keep one of them")
    return rows


def _add(table: Table, name: str, column: Any, rows: Any) -> None:
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    words = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    numeric = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    if not (words or numeric or pa.types.is_boolean(kind)):
        return
    column = column.cast(kind)
    distinct = pc.unique(column).drop_null()
    listed = len(distinct) <= MOST_CATEGORIES
    if (not numeric and listed) or (pa.types.is_integer(kind) and len(distinct) <= 50):
        values = sorted(distinct.to_pylist())
        found = pc.index_in(column, value_set=pa.array(values, kind))
        codes = np.full(table.size, -1, dtype=np.int32)
        codes[rows] = pc.fill_null(found, -1).to_numpy()
        table.categories[f"file:{name}"] = Category(name, codes, [str(value) for value in values])
    if numeric:
        numbers = np.full(table.size, np.nan)
        numbers[rows] = column.cast(pa.float64()).to_numpy()
        table.numbers[f"file:{name}"] = Numbers(name, numbers, _GROUP)
    elif not listed:
        texts: list[str | None] = [None] * table.size
        for row, text in zip(rows.tolist(), column.to_pylist(), strict=True):
            texts[row] = text
        table.texts[f"file:{name}"] = Texts(texts)
