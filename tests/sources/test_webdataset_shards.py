"""Shards as a map-style dataset: the members that tarfile and the library of the format find, at any position."""

from __future__ import annotations

import os
import pickle
import threading
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
import webdataset
from shard_files import by_tarfile, members_of, number_in, number_of, pack, png, sample, shards, uid
from torch.utils.data import DataLoader, Subset

from diffin.errors import DatasetError
from diffin.sources import Indexed, Pair, Readable, WebDataset, open_source


def dataset(source, decode=members_of, **given) -> WebDataset:
    return WebDataset(source, decode, progress=False, **given)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_samples_and_keys_are_those_that_tarfile_reads(tmp_path: Path) -> None:
    paths = shards(tmp_path / "data")
    expected = [both for path in paths for both in by_tarfile(path)]
    data = dataset(paths)
    assert len(data) == len(expected) == 10
    assert [data[position] for position in range(10)] == [members for _, members in expected]
    assert data.keys(range(10)) == [key for key, _ in expected]
    assert list(data) == [members for _, members in expected]
    assert data[-1] == data[9]
    with pytest.raises(IndexError):
        data[10]


def test_samples_are_those_that_the_library_of_the_format_wrote_and_reads(tmp_path: Path) -> None:
    with webdataset.ShardWriter(str(tmp_path / "s-%03d.tar"), maxcount=4, verbose=0) as writer:
        for number in range(10):
            writer.write({"__key__": f"k{number:03}", "png": png(number), "txt": f"a {number}", "json": {"n": number}})
    data = dataset(str(tmp_path / "s-{000..002}.tar"))
    theirs = list(webdataset.WebDataset(str(tmp_path / "s-{000..002}.tar"), shardshuffle=False))
    assert data.keys(range(10)) == [one["__key__"] for one in theirs] == [f"k{number:03}" for number in range(10)]
    for ours, one in zip(data, theirs, strict=True):
        assert ours == {kind: bytes(one[kind]) for kind in ("png", "txt", "json")}


def test_many_are_read_in_the_order_and_as_often_as_asked_for(tmp_path: Path) -> None:
    data = dataset(shards(tmp_path, (300, 40)), number_of)
    for asked in ([], [339, 0, 339, 300, 299, 1], np.random.default_rng(0).integers(340, size=500).tolist()):
        assert data.__getitems__(asked) == asked
    assert data.__getitems__([-1]) == [339]


def test_only_the_members_that_are_wanted_are_read(tmp_path: Path) -> None:
    data = dataset(shards(tmp_path), members=("TXT", "cls"))
    assert data[3] == {"txt": sample(3)["txt"]}


def test_large_members_between_do_not_have_to_be_read_together(tmp_path: Path) -> None:
    large = np.random.default_rng(0).bytes(200_000)
    pack(tmp_path / "a.tar", [(f"{n}", {"bin": large, "txt": f"x {n}".encode()}) for n in range(5)])
    assert dataset(tmp_path / "a.tar", number_of, members=["txt"]).__getitems__([4, 0, 2]) == [4, 0, 2]
    assert dataset(tmp_path / "a.tar").__getitems__([4, 0])[0] == {"bin": large, "txt": b"x 4"}


@pytest.mark.parametrize(
    "pattern", ["{000..002}.tar", "00{0,1,2}.tar", "00?.tar", "*.tar", "{000..001}.tar+002.tar", ""]
)
def test_shards_can_be_named_by_patterns(pattern: str, tmp_path: Path) -> None:
    paths = shards(tmp_path / "data")
    first, _, second = pattern.partition("+")
    named = str(tmp_path / "data" / first) if not second else [*paths[:2], tmp_path / "data" / second]
    data = dataset(named, number_of)
    assert data.shards == tuple(map(str, paths))
    assert list(data) == list(range(10))


def test_numbers_in_braces_are_padded_as_they_are_written(tmp_path: Path) -> None:
    names = [tmp_path / f"{number}.tar" for number in range(8, 12)]
    for number, name in enumerate(names):
        pack(name, [("a", sample(number))])
    assert dataset(str(tmp_path / "{8..11}.tar")).shards == tuple(map(str, names))


@pytest.mark.parametrize(
    ("named", "told"),
    [
        ("{a}.tar", "braces"),
        ("none-*.tar", "names no files"),
        ([], "names no files"),
        (["a.tar", "a.tar"], "comes twice"),
    ],
    ids=["braces", "asterisk", "nothing", "twice"],
)
def test_names_of_no_shards_are_refused(named, told: str) -> None:
    with pytest.raises(DatasetError, match=told):
        dataset(named)


@pytest.mark.parametrize("protocol", ["memory", "file"])
def test_shards_are_read_from_urls(protocol: str, tmp_path: Path) -> None:
    paths = shards(tmp_path / "data")
    root = f"memory:/{tmp_path}/data" if protocol == "memory" else f"file://{tmp_path}/data"
    if protocol == "memory":
        for path in paths:
            with fsspec.open(f"{root}/{path.name}", "wb") as file:
                file.write(path.read_bytes())
    data = dataset([f"{root}/{path.name}" for path in paths], number_of)
    assert list(data) == list(range(10))
    assert data.__getitems__([9, 0, 5]) == [9, 0, 5]
    assert list(dataset(f"{root}/00{{0..2}}.tar", number_of)) == list(range(10))
    assert list(dataset(f"{root}/*.tar", number_of)) == list(range(10))


def test_keys_can_be_a_field_of_the_json_member(tmp_path: Path) -> None:
    paths = [
        *shards(tmp_path),
        pack(tmp_path / "z.tar", [("no-json", {"txt": b"x 1"}), ("odd", {"json": b'{"uid": null}'})]),
    ]
    data = dataset(paths, key="uid")
    assert data.keys(range(12)) == [*map(uid, range(10)), "no-json", "odd"]
    assert dataset(paths).keys([0, 11]) == ["in/é000000", "odd"]


def test_names_that_are_no_text_have_keys_that_tables_hold(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.tar", [("caf\udce9", {"txt": b"x 1"})])
    (key,) = dataset(path).keys([0])
    assert key == "caf\\xe9"
    assert key.encode()


def test_a_source_gives_the_same_batches_by_any_number_of_workers(tmp_path: Path) -> None:
    data = dataset(shards(tmp_path / "data", (30, 20, 10)), Pair())
    for workers in (0, 2):
        read = list(open_source(data, workers=workers).batches(7, 3, 55, align=20))
        assert np.concatenate([indices for indices, _ in read]).tolist() == list(range(3, 55))
        numbers = [number_in(image) for _, (images, _) in read for image in images.numpy()]
        assert numbers == list(range(3, 55))
        assert [words for _, (_, texts) in read for words in texts] == [f"picture number {n}" for n in range(3, 55)]
    source = open_source(data)
    assert source.keyed
    assert source.keys(np.array([59, 0])) == data.keys([59, 0])
    assert open_source(Subset(data, [5, 4])).keys(np.array([0, 1])) == data.keys([5, 4])
    assert open_source(Indexed(data)).keys(np.array([2])) == data.keys([2])


class Noisy:
    """A random transform of the number, drawn from a global generator."""

    def __call__(self, stored) -> torch.Tensor:
        return number_of(stored) + torch.rand(())


def test_random_decoding_is_the_same_in_any_batch_worker_and_wrapper(tmp_path: Path) -> None:
    data = dataset(shards(tmp_path), Noisy())
    expected = torch.cat([batch for _, batch in open_source(data).batches(10)])
    assert len(torch.unique(expected - torch.arange(10))) == 10
    for other in (data, Subset(data, range(10))):
        for workers in (0, 2):
            assert torch.equal(torch.cat([b for _, b in open_source(other, workers=workers).batches(3)]), expected)


def test_a_training_reads_it_in_workers_with_or_without_indices(tmp_path: Path) -> None:
    paths = [*shards(tmp_path), pack(tmp_path / "y.tar", [("late", {"png": b"no picture", "txt": b"x 10"})])]
    data = dataset(paths, Pair(tokenize=len))
    collate = Readable(torch.utils.data.default_collate)
    loader = DataLoader(Indexed(data), batch_size=4, num_workers=2, collate_fn=collate)
    assert torch.cat([indices for _, _, indices in loader]).tolist() == list(range(10))
    (batch,) = DataLoader(data, batch_size=11, collate_fn=collate)
    assert batch[0].shape == (10, 3, 3, 4)
    # Scoring takes the same loader, and the index of what was left out is not lost.
    source = open_source(loader)
    assert [len(indices) for indices, _ in source.batches(11)] == [10]
    assert list(source.failures) == [10]


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_workers_of_any_kind_read_it(method: str, tmp_path: Path) -> None:
    data = dataset(shards(tmp_path), number_of)
    assert data[3] == 3
    loader = DataLoader(data, batch_size=2, num_workers=1, multiprocessing_context=method)
    assert torch.cat(list(loader)).tolist() == list(range(10))


def test_it_is_pickled_without_the_index_and_finds_it_again(tmp_path: Path) -> None:
    data = dataset(shards(tmp_path / "data", (200, 100)), number_of)
    sent = pickle.dumps(data)
    assert len(sent) < 2000
    assert list(pickle.loads(sent)) == list(range(300))


def test_what_is_unpickled_elsewhere_makes_the_index_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = shards(tmp_path / "data")
    sent = pickle.dumps(dataset(paths, number_of, index=tmp_path / "index"))
    (tmp_path / "index").rename(tmp_path / "gone")
    assert list(pickle.loads(sent)) == list(range(10))
    (tmp_path / "index").rename(tmp_path / "gone too")
    os.utime(paths[1], (0, 0))  # as another machine has it, with a copy of its own
    assert list(pickle.loads(sent)) == list(range(10))
    (tmp_path / "index").rename(tmp_path / "gone as well")
    paths[0].unlink()
    with pytest.raises(DatasetError, match="other positions"):
        pickle.loads(sent)


def test_threads_read_it_at_once(tmp_path: Path) -> None:
    data, found = dataset(shards(tmp_path, (200,)), number_of), {}

    def read(thread: int) -> None:
        order = np.random.default_rng(thread).permutation(200).tolist()
        found[thread] = [data[position] for position in order] == order

    threads = [threading.Thread(target=read, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict.fromkeys(range(4), True)
