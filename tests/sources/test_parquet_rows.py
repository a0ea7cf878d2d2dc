"""Rows of Parquet files as a map-style dataset, by row groups."""

from __future__ import annotations

import pickle
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from shard_files import number_in, png, uid
from torch.utils.data import DataLoader

from diffin.errors import DatasetError
from diffin.sources import Pair, Parquet, Unreadable, open_source


def files(folder: Path, counts=(7, 0, 5, 9), group: int = 4, *, struct: bool = False) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths, first = [], 0
    for part, count in enumerate(counts):
        numbers = range(first, first + count)
        images = [{"bytes": png(n), "path": f"{n}.png"} if struct else png(n) for n in numbers]
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())]) if struct else pa.binary()
        table = pa.table(
            {
                "image": pa.array(images, kind),
                "text": pa.array([f"picture number {n}" for n in numbers], pa.string()),
                "uid": pa.array([uid(n) for n in numbers], pa.string()),
            }
        )
        paths.append(folder / f"part-{part}.parquet")
        pq.write_table(table, paths[-1], row_group_size=group)
        first += count
    return paths


def row(stored):
    return stored


def number(stored) -> int:
    return int(stored["text"].split()[-1])


def test_rows_are_those_of_the_tables_in_any_order(tmp_path: Path) -> None:
    paths = files(tmp_path)
    expected = pa.concat_tables(map(pq.read_table, paths)).to_pylist()
    data = Parquet(paths, row)
    assert len(data) == 21
    assert list(data) == expected
    for asked in ([], [20, 0, 7, 6, 20], np.random.default_rng(0).integers(21, size=60).tolist()):
        assert data.__getitems__(asked) == [expected[position] for position in asked]
    assert data.keys([0, 7, 20]) == ["part-0.parquet:0", "part-2.parquet:0", "part-3.parquet:8"]
    assert Parquet(paths, row, key="uid").keys([20, 0]) == [uid(20), uid(0)]
    assert Parquet(paths, row, columns=["text"], key="uid")[3] == {"text": "picture number 3"}
    assert list(Parquet(str(tmp_path / "part-{2..3}.parquet"), number)) == list(range(7, 21))


def test_keys_tell_files_of_the_same_name_apart(tmp_path: Path) -> None:
    paths = [*files(tmp_path / "a", (2,)), *files(tmp_path / "b", (2,))]
    assert Parquet(paths, row).keys([1, 2]) == ["a/part-0.parquet:1", "b/part-0.parquet:0"]


@pytest.mark.parametrize("struct", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_pictures_are_read_by_any_number_of_workers(struct: bool, workers: int, tmp_path: Path) -> None:
    data = Parquet(files(tmp_path, struct=struct), Pair("image", "text"), key="uid")
    source = open_source(data, workers=workers)
    read = list(source.batches(5))
    assert [number_in(image) for _, (images, _) in read for image in images.numpy()] == list(range(21))
    assert source.keys(np.arange(21)) == [uid(n) for n in range(21)]


def test_reading_in_order_reads_each_row_group_once_and_holds_one(tmp_path: Path) -> None:
    data = Parquet(files(tmp_path, (8, 8)), number)
    read: list[int] = []
    inner = data._group

    def noted(group: int):
        if data._held is None or data._held[0] != group:
            read.append(group)
        return inner(group)

    data._group = noted  # type: ignore[method-assign]
    for start in range(0, 16, 3):
        data.__getitems__(range(start, min(start + 3, 16)))
    assert read == [0, 1, 2, 3]
    assert data._held is not None
    assert data._held[1].num_rows == 4


def test_it_is_pickled_without_what_it_holds(tmp_path: Path) -> None:
    data = Parquet(files(tmp_path), number)
    assert data[0] == 0
    sent = pickle.dumps(data)
    assert len(sent) < 3000
    assert list(pickle.loads(sent)) == list(range(21))
    assert torch.cat(list(DataLoader(data, batch_size=4, num_workers=2))).tolist() == list(range(21))


def test_files_are_read_from_urls(tmp_path: Path) -> None:
    for path in files(tmp_path):
        with fsspec.open(f"memory:/{tmp_path}/{path.name}", "wb") as file:
            file.write(path.read_bytes())
    data = Parquet(f"memory:/{tmp_path}/*.parquet", number, key="uid")
    assert data.__getitems__([20, 3]) == [20, 3]
    assert data.keys([20]) == [uid(20)]


def test_files_that_cannot_be_read_are_left_out_and_listed(tmp_path: Path) -> None:
    good = files(tmp_path)
    (tmp_path / "x.parquet").write_bytes(b"PAR1 and no more")
    bad = [tmp_path / "x.parquet", tmp_path / "none.parquet"]
    data = Parquet([*good[:2], *bad, *good[2:]], number)
    assert list(data) == list(range(21))
    assert set(data.quarantined) == {str(path) for path in bad}
    assert "cannot be read as Parquet" in data.quarantined[str(bad[0])]
    assert "there is no" in data.quarantined[str(bad[1])]
    with pytest.raises(DatasetError, match="none of the 2 files"):
        Parquet(bad, number)
    with pytest.raises(DatasetError, match=r"no column 'caption'; it has image, text, uid"):
        Parquet(good, number, columns=["caption"])


def test_a_file_that_breaks_later_makes_its_rows_unreadable(tmp_path: Path) -> None:
    paths = files(tmp_path, (8, 8, 4))
    data = Parquet(paths, number)
    damaged = bytearray(paths[0].read_bytes())
    damaged[4:200] = bytes(196)
    paths[0].write_bytes(damaged)
    paths[1].unlink()
    found = data.__getitems__(range(20))
    assert all(isinstance(one, Unreadable) for one in (*found[:4], *found[8:16]))
    assert {one.reason for one in found[8:16]} == {f"there is no {paths[1]}"}
    assert found[16:] == [16, 17, 18, 19]


def test_a_row_without_a_picture_is_unreadable(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": pa.array([png(0), None]), "text": ["a 0", "b 1"]}), tmp_path / "a.parquet")
    found = Parquet(tmp_path / "a.parquet", Pair("image", "text")).__getitems__([0, 1])
    assert found[0][1] == "a 0"
    assert found[1] == Unreadable("has no image, only text")
