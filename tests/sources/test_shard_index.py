"""The index of shards: kept, made again when they change, and without what cannot be read."""

from __future__ import annotations

import gzip
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from shard_files import members_of, number_of, pack, sample, shards

from diffin.errors import DatasetError, UnreadableError
from diffin.sources import Unreadable, WebDataset
from diffin.sources.many_files import of_each


def dataset(source, decode=number_of, **given) -> WebDataset:
    return WebDataset(source, decode, progress=False, **given)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "diffin" / "shards"


def folders(cache: Path) -> dict[str, int]:
    """Every index in the cache, and when it was made."""
    return {entry.name: (entry / "meta.json").stat().st_mtime_ns for entry in cache.iterdir()}


def test_an_index_is_made_once_and_beside_nothing_of_the_users(tmp_path: Path, cache: Path) -> None:
    paths = shards(tmp_path / "data")
    before = sorted((tmp_path / "data").iterdir())
    assert not cache.exists()
    assert len(dataset(paths)) == 10
    made = folders(cache)
    assert len(made) == 1
    assert list(dataset(paths)) == list(range(10))
    assert folders(cache) == made
    assert sorted((tmp_path / "data").iterdir()) == before


def test_a_shard_that_changed_or_came_is_indexed(tmp_path: Path, cache: Path) -> None:
    paths = shards(tmp_path / "data")
    old = dataset(paths)
    assert len(old) == 10
    pack(paths[1], [("new", sample(50)), ("newer", sample(51))])
    assert list(dataset(paths)) == [0, 1, 2, 3, 4, 50, 51, 6, 7, 8, 9]
    assert len(dataset(paths[:2])) == 7
    assert len(dataset(paths, key="uid")) == 11
    assert len(folders(cache)) == 4
    # The one that was open knows no more where the samples are, and says so instead of reading something else.
    found = old.__getitems__([4, 5, 6])
    assert (found[0], found[2]) == (4, 6)
    assert isinstance(found[1], Unreadable)
    assert "has changed since its index was made" in found[1].reason


def test_the_folder_can_be_chosen(tmp_path: Path, cache: Path) -> None:
    paths = shards(tmp_path / "data")
    assert len(dataset(paths, index=tmp_path / "a" / "index")) == 10
    assert not cache.exists()
    assert len(dataset(paths[:1], index=tmp_path / "a" / "index")) == 5
    assert len(dataset(paths, index=str(tmp_path / "a" / "index"))) == 10
    assert [entry.name for entry in (tmp_path / "a").iterdir()] == ["index"]
    (tmp_path / "empty").mkdir()
    assert len(dataset(paths, index=tmp_path / "empty")) == 10


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    paths = shards(tmp_path / "data")
    with pytest.raises(DatasetError, match="holds other things"):
        len(dataset(paths, index=tmp_path / "data"))
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DatasetError, match="cannot be written"):
        len(dataset(paths, index=tmp_path / "file" / "index"))
    assert len(list((tmp_path / "data").iterdir())) == 3


@pytest.mark.parametrize("name", ["meta.json", "first", "start", "keys"])
def test_a_damaged_index_is_made_again(name: str, tmp_path: Path, cache: Path) -> None:
    paths = shards(tmp_path / "data")
    len(dataset(paths))
    (folder,) = cache.iterdir()
    os.truncate(folder / name, 9)
    assert list(dataset(paths)) == list(range(10))
    shutil.rmtree(folder)
    assert list(dataset(paths)) == list(range(10))


def broken(folder: Path) -> dict[str, tuple[Path, str]]:
    """Shards that cannot be read, each in its own way, and what is said of it."""
    whole = pack(folder / "whole", [(f"{n}", sample(n)) for n in range(20)]).read_bytes()
    found = {
        "cut": (whole[: len(whole) // 2 + 100], "ends within|damaged or cut off"),
        "text": (b"no archive at all " * 100, "no uncompressed tar archive"),
        "packed": (gzip.compress(whole), "gzip.*unpack"),
        "empty": (b"", "is empty"),
        "flipped": (whole[:2048] + bytes([whole[2048] ^ 1]) + whole[2049:], "damaged"),
    }
    paths = {name: (folder / f"{name}.tar", told) for name, (_, told) in found.items()}
    for name, (data, _) in found.items():
        paths[name][0].write_bytes(data)
    paths["outside"] = (
        pack(folder / "outside.tar", [("a", sample(1)), ("../a", sample(2))]),
        "points out of its folder",
    )
    paths["twice"] = (pack(folder / "twice.tar", [("a", {"txt": b"1"}), ("a", {"txt": b"2"})]), "twice in one sample")
    paths["linked"] = (folder / "linked.tar", "neither a plain file")
    with tarfile.open(folder / "linked.tar", "w") as archive:
        info = tarfile.TarInfo("a.png")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(info)
    paths["missing"] = (folder / "missing.tar", "there is no ")
    (folder / "folder.tar").mkdir()
    paths["folder"] = (folder / "folder.tar", "cannot be read.*IsADirectory")
    return paths


def test_shards_that_cannot_be_read_are_left_out_and_listed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = shards(tmp_path / "data")
    bad = broken(tmp_path / "bad")
    mixed = [good[0], *(path for path, _ in bad.values()), *good[1:]]
    data = dataset(mixed)
    assert list(data) == list(range(10))
    assert data.shards == tuple(map(str, good))
    assert set(data.quarantined) == {str(path) for path, _ in bad.values()}
    for path, told in bad.values():
        assert re.search(told, data.quarantined[str(path)])
    assert "10 of 13 shards cannot be read" in caplog.text


def test_without_a_shard_that_can_be_read_there_is_no_dataset(tmp_path: Path) -> None:
    paths = [path for path, _ in broken(tmp_path).values()]
    with pytest.raises(DatasetError, match=r"none of the 10 shards can be read; the first: .*cut.tar"):
        len(dataset(paths))


def test_what_may_be_readable_another_time_is_tried_again(tmp_path: Path) -> None:
    paths = shards(tmp_path / "data")
    hidden = paths[1].rename(tmp_path / "hidden")
    paths[1].symlink_to(paths[1].name)  # To itself: an error of the file system, as of a server that is away.
    assert list(dataset(paths)) == [0, 1, 2, 3, 4, 6, 7, 8, 9]
    first = dataset(paths)
    assert list(first.quarantined) == [str(paths[1])]
    paths[1].unlink()
    hidden.rename(paths[1])
    assert list(dataset(paths)) == list(range(10))
    assert list(first) == [0, 1, 2, 3, 4, 6, 7, 8, 9]


def test_a_shard_that_breaks_later_makes_its_samples_unreadable(tmp_path: Path) -> None:
    paths = shards(tmp_path / "data")
    data = dataset(paths)
    assert len(data) == 10
    os.truncate(paths[0], 3000)
    paths[2].unlink()
    found = data.__getitems__(range(10))
    assert found[5] == 5
    assert {one.reason for one in found[:5]} == {
        f"{paths[0]} has changed since its index was made; open the data set anew"
    }
    assert {one.reason for one in found[6:]} == {f"there is no {paths[2]}"}
    with pytest.raises(UnreadableError, match="there is no"):
        data[9]


def test_the_index_is_flat_in_memory_and_mapped(tmp_path: Path) -> None:
    data = dataset(shards(tmp_path / "data", (50, 30)))
    len(data)
    arrays = data._index.arrays
    assert all(isinstance(array, np.memmap) for array in arrays.values())
    assert sum(array.nbytes for array in arrays.values()) < 120 * len(data) + 100


def test_processes_and_threads_find_the_same_in_order(tmp_path: Path) -> None:
    names = [str(path) for path in shards(tmp_path, [3] * 12)]
    for processes in (1, 2):
        assert list(of_each(os.path.basename, names, processes=processes)) == [f"{n:03}.tar" for n in range(12)]


def test_a_killed_process_is_told_of(tmp_path: Path) -> None:
    script = tmp_path / "killed.py"
    script.write_text(
        "import os\nfrom diffin.errors import DatasetError\nfrom diffin.sources.many_files import of_each\n"
        "def die(name):\n    os._exit(9)\n"
        "try:\n    list(of_each(die, ['a'] * 4, processes=2))\nexcept DatasetError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert "was killed; was memory short?" in done.stdout


def _numbers(paths: list[Path], folder: Path, start, pipe) -> None:
    start.wait()
    try:
        pipe.send(list(dataset(paths, index=folder)))
    except BaseException as error:
        pipe.send(repr(error))


@pytest.mark.parametrize("bad", [False, True])
def test_processes_that_make_the_same_index_at_once_all_have_it(bad: bool, tmp_path: Path) -> None:
    paths = shards(tmp_path / "data", [20] * 10)
    if bad:  # an index that is tried again is replaced while others use it
        (tmp_path / "loop.tar").symlink_to("loop.tar")
        paths.append(tmp_path / "loop.tar")
    context = multiprocessing.get_context("fork")
    start, pipes = context.Barrier(4), [context.Pipe() for _ in range(4)]
    workers = [context.Process(target=_numbers, args=(paths, tmp_path / "index", start, there)) for _, there in pipes]
    for worker in workers:
        worker.start()
    found = [here.recv() for here, _ in pipes]
    for worker in workers:
        worker.join()
    assert found == [list(range(200))] * 4
    assert sorted(entry.name for entry in tmp_path.iterdir() if "index" in entry.name) == ["index"]


def test_an_index_that_was_interrupted_leaves_no_index(tmp_path: Path, cache: Path) -> None:
    paths = shards(tmp_path / "data")
    (cache / "0123.abc.part").mkdir(parents=True)  # as a killed one leaves it
    assert list(dataset(paths, members_of)) == [sample(n) for n in range(10)]
