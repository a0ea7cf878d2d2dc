"""Choosing by key, and the subset files of DataComp."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from written import (
    add,
    hugging_face,
    labels_of,
    picture,
    read_images,
    read_parquet,
    read_shards,
    write_images,
    write_parquet,
    write_shards,
)

from diffin import sources
from diffin.errors import DatasetError
from diffin.export import chosen_by_key, export, open_data, read_subset_file, subset_file

SIZE = 20
LABELS = sorted(labels_of(SIZE))


def uids(count: int, seed: int = 0) -> list[str]:
    return [np.random.default_rng([seed, number]).bytes(16).hex() for number in range(count)]


def _reads(kind: str, folder: Path):
    """Data of a kind, the keys of its samples, and what reads what was written."""
    if kind == "images":
        write_images(folder, LABELS)
        data = open_data(folder)
        return data, [f"{['ant', 'bee', 'cat'][label]}/{n:05}.png" for n, label in enumerate(LABELS)], read_images
    if kind == "shards":
        write_shards(folder, LABELS)
        long = ["long" * 30, "long" * 30, "in"]
        sizes = np.repeat(np.arange(3), [7, 7, 6])
        return open_data(folder), [f"{long[part]}/{n:05}" for n, part in enumerate(sizes)], read_shards
    write_parquet(folder, LABELS)
    if kind == "parquet by id":
        return open_data(folder, key_column="id"), [str(n) for n in range(SIZE)], read_parquet
    rows = [f"part-{part}.parquet:{row}" for part, count in enumerate((7, 7, 6)) for row in range(count)]
    return open_data(folder), rows, read_parquet


@pytest.mark.parametrize("kind", ["images", "shards", "parquet", "parquet by id"])
def test_what_has_a_key_of_the_set_is_written(kind: str, tmp_path: Path) -> None:
    data, keys, read = _reads(kind, tmp_path / "data")
    assert list(data.keys()) == keys
    chosen = chosen_by_key(data, {keys[position] for position in (0, 3, 19)})
    assert chosen.index.tolist() == [0, 3, 19]
    export(data, tmp_path / "out", chosen)
    assert [number for number, _ in read(tmp_path / "out")] == [0, 3, 19]
    with pytest.raises(DatasetError, match=r"2 of 3 keys are of no sample of .*'nobody', 'nothing' first"):
        chosen_by_key(data, [keys[1], "nothing", "nobody"])


def test_hugging_face_needs_a_column_of_ids() -> None:
    table = hugging_face(LABELS)
    assert chosen_by_key(open_data(table, key_column="text"), ["words 4"]).index.tolist() == [4]
    with pytest.raises(DatasetError, match="name a column with key_column"):
        chosen_by_key(open_data(table), ["words 4"])
    with pytest.raises(DatasetError, match="key_column may be image, intent, text"):
        open_data(table, key_column="uid")


def _with_uids(folder: Path, ids: list[str]) -> list[Path]:
    """Shards that number their samples from 0 each, so that only the field of their json tells them apart."""
    folder.mkdir()
    for part in range(2):
        with tarfile.open(folder / f"{part}.tar", "w") as archive:
            for number in range(part * 10, part * 10 + 10):
                add(archive, f"{number % 10:05}.png", picture(number))
                add(archive, f"{number % 10:05}.json", json.dumps({"uid": ids[number]}).encode())
    return sorted(folder.iterdir())


def test_shards_that_repeat_their_names_are_chosen_from_by_a_field(tmp_path: Path) -> None:
    ids = uids(SIZE)
    paths = _with_uids(tmp_path / "data", ids)
    with pytest.raises(DatasetError, match=r"two samples of .* have the key '00003'"):
        chosen_by_key(open_data(paths), ["00003"])
    chosen = chosen_by_key(open_data(paths, key_column="uid"), [ids[13], ids[2]])
    assert chosen.index.tolist() == [2, 13]


def test_a_dataset_of_sources_is_written_by_its_own_positions_and_keys(tmp_path: Path) -> None:
    ids = uids(SIZE)
    paths = _with_uids(tmp_path / "data", ids)
    torn = tmp_path / "torn.tar"
    torn.write_bytes(paths[0].read_bytes()[:900])
    read = sources.WebDataset([torn, *paths], dict, key="uid", index=tmp_path / "index", progress=False)
    chosen = chosen_by_key(open_data(read), read.keys([4, 15]))
    assert chosen.index.tolist() == [4, 15]
    export(open_data(read), tmp_path / "out", chosen)
    with tarfile.open(tmp_path / "out" / "1.tar") as archive:
        assert archive.getnames() == ["00005.png", "00005.json"]
    rows = sources.Parquet(write_parquet(tmp_path / "rows", LABELS), dict)
    assert chosen_by_key(open_data(rows), rows.keys([19])).index.tolist() == [19]
    remote = sources.WebDataset(["memory://nowhere/a.tar"], dict, index=tmp_path / "remote", progress=False)
    with pytest.raises(DatasetError, match="none of the 1 shards"):
        open_data(remote)


def test_remote_shards_cannot_be_written(tmp_path: Path) -> None:
    import fsspec

    (path, *_) = _with_uids(tmp_path / "data", uids(SIZE))
    with fsspec.open(f"memory:/{tmp_path}/a.tar", "wb") as file:
        file.write(path.read_bytes())
    read = sources.WebDataset(f"memory:/{tmp_path}/a.tar", dict, index=tmp_path / "index", progress=False)
    with pytest.raises(DatasetError, match="not on this machine"):
        open_data(read)


@pytest.mark.parametrize("count", [0, 1, 1000])
def test_a_subset_file_is_what_datacomp_reads(count: int, tmp_path: Path) -> None:
    ids = uids(count) + (["0" * 32, "f" * 32, "0" * 31 + "1"] if count else [])
    path = subset_file(iter(ids), tmp_path / "subset.npy")
    assert path == tmp_path / "subset.npy"
    # The format as DataComp writes it, one id after the other.
    expected = np.array([(int(uid[:16], 16), int(uid[16:], 16)) for uid in ids], dtype="u8,u8")
    expected.sort()
    found = np.load(path)
    assert found.dtype == expected.dtype
    assert np.array_equal(found, expected)
    written = io.BytesIO()
    np.save(written, expected)
    assert path.read_bytes() == written.getvalue()
    assert read_subset_file(path) == sorted(ids)
    assert [entry.name for entry in tmp_path.iterdir()] == ["subset.npy"]


def test_capital_digits_are_the_same_ids(tmp_path: Path) -> None:
    (one,) = uids(1)
    assert read_subset_file(subset_file([one.upper()], tmp_path / "a.npy")) == [one]
    with pytest.raises(DatasetError, match=f"1 ids come more than once: {one}"):
        subset_file([one, one.upper()], tmp_path / "b.npy")


@pytest.mark.parametrize(
    "wrong", ["", "0" * 31, "0" * 33, "0x" + "0" * 30, "g" * 32, " " + "0" * 31, "0_" * 16, "٣" * 32, 7]
)
def test_ids_that_are_none_are_refused_by_name(wrong, tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        subset_file([*uids(3), wrong, *uids(3, 1)], tmp_path / "subset.npy")
    assert f"1 of 7 ids are not 32 hexadecimal digits: {wrong!r};" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_ids_that_come_twice_are_refused_by_name(tmp_path: Path) -> None:
    ids = uids(5)
    with pytest.raises(DatasetError) as caught:
        subset_file([*ids, ids[2], ids[4], ids[2]], tmp_path / "subset.npy")
    both = ", ".join(sorted([ids[2], ids[4]]))
    assert f"2 ids come more than once: {both}; pass each once" in str(caught.value)
    with pytest.raises(DatasetError, match="and 2 more; pass each once"):
        subset_file(ids * 3, tmp_path / "subset.npy")
    assert not list(tmp_path.iterdir())


def test_files_that_cannot_be_written_or_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="could not write"):
        subset_file(uids(1), tmp_path / "none" / "subset.npy")
    with pytest.raises(DatasetError, match="cannot be read"):
        read_subset_file(tmp_path / "subset.npy")
    (tmp_path / "text.npy").write_text("no array")
    with pytest.raises(DatasetError, match="cannot be read"):
        read_subset_file(tmp_path / "text.npy")
    np.save(tmp_path / "other.npy", np.arange(4))
    with pytest.raises(DatasetError, match="holds int64 of shape"):
        read_subset_file(tmp_path / "other.npy")
    np.savez(tmp_path / "several.npz", np.arange(4))
    with pytest.raises(DatasetError, match="several arrays"):
        read_subset_file(tmp_path / "several.npz")
