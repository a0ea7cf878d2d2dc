"""Scores as tables of other libraries, which are imported when they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from diffin.errors import MissingDependencyError, ScoringError
from diffin.scoring.columns import to_numpy

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


def to_pandas(table: pa.Table) -> pd.DataFrame:
    """The table in pandas; NaN for null.

    Raises:
        MissingDependencyError: pandas is not installed.
    """
    _require("pandas")
    frame: pd.DataFrame = table.to_pandas()
    return frame


def to_polars(table: pa.Table) -> Any:
    """The table in Polars.

    Raises:
        MissingDependencyError: Polars is not installed.
    """
    return _require("polars").from_arrow(table)


def with_columns(dataset: Any, table: pa.Table, columns: Sequence[str]) -> Any:
    """A Hugging Face dataset with columns of the table beside its own; the one that is given stays as it is.

    Args:
        dataset: a ``datasets.Dataset`` of as many rows, in the same order.
        table: of scores.
        columns: which to add; NaN for null.

    Raises:
        ScoringError: it is something else, of another length, or has such a column already; or the table has none.
    """
    if not all(hasattr(dataset, name) for name in ("add_column", "column_names", "__len__")):
        raise ScoringError(
            f"dataset is a {type(dataset).__name__}; pass a datasets.Dataset (of a DatasetDict, one split), or join "
            "scores.table by its column index"
        )
    if len(dataset) != table.num_rows:
        raise ScoringError(
            f"dataset has {len(dataset):,} rows, and {table.num_rows:,} samples were scored; pass the dataset that was scored"
        )
    for name in columns:
        if name not in table.column_names:
            raise ScoringError(f"columns: there is no score {name!r}; there are {', '.join(table.column_names)}")
        if name in dataset.column_names:
            raise ScoringError(f"dataset has a column {name!r} already; rename or remove it first")
        dataset = dataset.add_column(name, _entries(table.column(name)))
    return dataset


def _entries(column: pa.ChunkedArray) -> Any:
    import pyarrow as pa

    return to_numpy(column) if pa.types.is_floating(column.type) else column.to_pylist()


def _require(package: str) -> Any:
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise MissingDependencyError(
            f"to_{package} needs {package}, which is not installed: run pip install {package}, or take scores.table"
        ) from error
