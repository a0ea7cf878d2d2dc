"""Columns that a user brings along."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diffin.errors import DatasetError
from diffin.explore.columns import MOST_CATEGORIES, Numbers, Table
from diffin.explore.files import add_columns

KEYS = [f"k{i}" for i in range(600)]


def table() -> Table:
    return Table(600, {"influence": Numbers("influence", np.arange(600.0))})


def test_words_are_filtered_by_numbers_are_sorted_by_and_the_rest_is_searched(tmp_path: Path) -> None:
    content = pa.table(
        {
            "site": pa.array(["north", None, "south"] * 200).dictionary_encode(),
            "night": [i % 2 == 0 for i in range(600)],
            "year": [2000 + i % 4 for i in range(600)],
            "pixel": list(range(600)),
            "sharpness": pa.array([None if i == 5 else i / 2 for i in range(600)], pa.float32()),
            "note": [f"Note {i}" for i in range(600)],
            "bytes": [b"x"] * 600,
        }
    )
    pq.write_table(content, tmp_path / "columns.parquet")
    found = table()
    add_columns(found, tmp_path / "columns.parquet", None)
    assert list(found.categories) == ["file:site", "file:night", "file:year"]
    assert found.categories["file:site"].names == ["north", "south"]
    assert found.categories["file:site"].codes[:4].tolist() == [0, -1, 1, 0]
    assert [found.categories["file:night"].name(row) for row in (0, 1)] == ["True", "False"]
    assert [found.categories["file:year"].name(row) for row in (0, 3, 4)] == ["2000", "2003", "2000"]
    assert list(found.numbers) == ["influence", "file:year", "file:pixel", "file:sharpness"]
    assert np.isnan(found.numbers["file:sharpness"].values[5])
    assert found.numbers["file:sharpness"].values[7] == 3.5
    assert list(found.texts) == ["file:note"]
    assert np.flatnonzero(found.texts["file:note"].containing("note 59", 600)).tolist() == [59, *range(590, 600)]


@pytest.mark.parametrize("name", ["index", "key"])
def test_rows_may_come_in_any_order_and_not_all(name: str) -> None:
    generator = np.random.default_rng(0)
    rows = generator.permutation(600)[:450]
    of = rows if name == "index" else [KEYS[row] for row in rows]
    found = table()
    add_columns(found, pa.table({name: of, "twice": rows * 2.0, "odd": [bool(row % 2) for row in rows]}), KEYS)
    expected = np.full(600, np.nan)
    expected[rows] = rows * 2.0
    np.testing.assert_array_equal(found.numbers["file:twice"].values, expected)
    assert found.categories["file:odd"].name(int(rows[0])) == str(bool(rows[0] % 2))
    assert (found.categories["file:odd"].codes < 0).sum() == 150


def test_many_words_are_not_listed() -> None:
    found = table()
    add_columns(found, pa.table({"name": [f"n{i % (MOST_CATEGORIES + 1)}" for i in range(600)]}), None)
    assert not found.categories
    assert found.texts["file:name"].containing("N77", 600).sum() == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"a": [1, 2]}, "2 rows for 600 samples"),
        ({"index": [0, 600], "a": [1, 2]}, "0 to 599"),
        ({"index": [0.5, 1.0], "a": [1, 2]}, "whole numbers"),
        ({"index": [3, 3], "a": [1, 2]}, "two rows about one sample"),
        ({"key": ["k1", "strange"], "a": [1, 2]}, "'strange'"),
    ],
)
def test_rows_that_are_about_other_samples_are_refused(content: Any, words: str) -> None:
    with pytest.raises(DatasetError, match=words):
        add_columns(table(), pa.table(content), KEYS)


def test_what_is_no_parquet_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such file"):
        add_columns(table(), tmp_path / "absent.parquet", None)
    (tmp_path / "words.parquet").write_text("words")
    with pytest.raises(DatasetError, match="cannot be read as Parquet"):
        add_columns(table(), tmp_path / "words.parquet", None)
