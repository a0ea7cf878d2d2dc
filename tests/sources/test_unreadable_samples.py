"""Samples that cannot be read: left out of batches, reported with the reason, refused where all are needed."""

from __future__ import annotations

import io
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from shard_files import number_of, pack, png, sample
from torch.utils.data import DataLoader, Dataset, default_collate

from diffin.errors import DatasetError, UnreadableError
from diffin.sample import Sample
from diffin.sources import Indexed, Pair, Readable, Unreadable, WebDataset, open_source
from diffin.sources.pictures import picture


class Partly(Dataset):
    """Numbers, of which some cannot be read."""

    def __init__(self, size: int, bad: dict[int, str]) -> None:
        self.size, self.bad = size, bad

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> float:
        if index in self.bad:
            raise UnreadableError(self.bad[index])
        return float(index)


class AtOnce(Partly):
    def __getitem__(self, index: int) -> float:
        raise AssertionError("one by one")

    def __getitems__(self, indices: list[int]) -> list[float | Unreadable]:
        return [Unreadable(self.bad[i]) if i in self.bad else float(i) for i in indices]


class Overriding(AtOnce):
    """What reads many at once knows nothing of this."""

    def __getitem__(self, index: int) -> float:
        return -float(index)


BAD = {1: "torn", 4: "lost", 5: "lost", 6: "lost", 7: "lost", 10: "wet"}


@pytest.mark.parametrize("kind", [Partly, AtOnce])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_hold_what_can_be_read_and_reasons_come_with_them(kind, workers: int) -> None:
    source = open_source(kind(11, BAD), workers=workers)
    seen = []
    for indices, batch in source.batches(4):
        assert indices.tolist() == batch.tolist()
        assert indices.dtype == np.int64
        seen.append((indices.tolist(), sorted(source.failures)))
    # The second batch has nothing that can be read.
    assert [indices for indices, _ in seen] == [[0, 2, 3], [8, 9]]
    assert [set(range(indices[-1])) & set(BAD) <= set(failures) for indices, failures in seen] == [True, True]
    assert source.failures == BAD


def test_a_selection_reports_by_the_index_of_the_dataset() -> None:
    source = open_source(Partly(11, BAD)).select([9, 4, 1, 1, 0])
    assert [indices.tolist() for indices, _ in source.batches(10)] == [[0, 9]]
    assert source.failures == {1: "torn", 4: "lost"}
    read = list(source.read([np.array([4, 3, 0]), np.array([1])]))
    assert [(r.places.tolist(), r.indices.tolist(), r.failures) for r in read] == [
        ([0, 2], [9, 0], {4: "lost"}),
        ([], [], {1: "torn"}),
    ]
    assert read[0].batch.tolist() == [9.0, 0.0]
    assert read[1].batch is None


def test_items_of_an_iterable_can_say_that_they_cannot_be_read() -> None:
    source = open_source([Unreadable("torn") if i in BAD else float(i) for i in range(11)])
    stream = open_source(_Stream())
    for one in (source, stream):
        assert [indices.tolist() for indices, _ in one.batches(4)] == [[0, 2, 3], [8, 9]]
        assert set(one.failures) == set(BAD)


class _Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter([Unreadable("torn") if i in BAD else float(i) for i in range(11)])


def test_reading_one_is_not_overridden_by_reading_many() -> None:
    ((_, batch),) = open_source(Overriding(3, BAD)).batches(3)
    assert batch.tolist() == [0.0, -1.0, -2.0]


def test_what_needs_every_sample_is_refused_with_the_index() -> None:
    source = open_source(Partly(11, BAD))
    with pytest.raises(
        UnreadableError, match="sample 4 of the dataset is needed here, and cannot be read: lost"
    ) as caught:
        source.fetch(np.array([0, 4]))
    assert caught.value.reason == "lost"
    list(source.batches(3))  # it knows all by now
    read = source.every(4)
    with pytest.raises(UnreadableError, match="sample 1 of"):
        next(read)
    assert source.failures == BAD
    assert source.select([0, 2, 3]).fetch(np.array([2, 0])).tolist() == [3.0, 0.0]
    assert sum(len(indices) for indices, _ in open_source(Partly(11, {})).every(4)) == 11
    with pytest.raises(UnreadableError, match="sample 10 of"):
        list(open_source(Partly(11, {10: "wet"})).every(10))


def test_other_errors_stay_errors() -> None:
    class Wrong(Partly):
        def __getitem__(self, index: int) -> float:
            raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug") as caught:
        list(open_source(Wrong(3, {})).batches(2))
    assert caught.value.__notes__ == ["diffin was reading sample 0 of the dataset"]


def test_the_error_goes_through_pickle_with_its_reason() -> None:
    error = pickle.loads(pickle.dumps(UnreadableError("torn", "sample 3: torn")))
    assert (error.reason, str(error)) == ("torn", "sample 3: torn")
    assert str(pickle.loads(pickle.dumps(UnreadableError("torn")))) == "torn"


def test_a_few_samples_are_those_that_can_be_read() -> None:
    few = Sample.of(open_source(Partly(11, BAD)))
    assert few.count == 5
    assert few.batch.tolist() == [0.0, 2.0, 3.0, 8.0, 9.0]
    with pytest.raises(DatasetError, match=r"none of 3 samples .* torn"):
        Sample.of(open_source(Partly(3, dict.fromkeys(range(3), "torn"))))


def test_a_training_can_leave_out_what_cannot_be_read() -> None:
    collate = Readable(default_collate)
    items = [Unreadable("torn"), (1.0, 5), (2.0, 6)]
    assert [part.tolist() for part in collate(items)] == [[1.0, 2.0], [5, 6]]
    with pytest.raises(UnreadableError, match=r"no sample of a batch of 1 .* torn"):
        collate(items[:1])
    with pytest.raises(UnreadableError, match="torn"):
        list(DataLoader(Indexed(Partly(11, BAD)), batch_size=4))


def _damaged() -> list[tuple[str, dict[str, bytes], str | None]]:
    """Samples, some of which are not as they should be, and what is said of them."""
    whole = sample(0)
    bomb = io.BytesIO()
    Image.new("1", (14_000, 14_000)).save(bomb, "png")
    return [
        ("good", whole, None),
        ("no-caption", {"png": png(1)}, "has no txt, only png"),
        ("no-picture", {"txt": b"words", "json": b"{}"}, "has no png or jpg or jpeg or webp, only txt, json"),
        ("cut", {**whole, "png": png(2)[:45]}, "OSError: |SyntaxError: |no image"),
        ("noise", {**whole, "png": b"\x89PNG and no more"}, "its 16 bytes are no image that Pillow knows"),
        ("empty", {**whole, "png": b""}, "its 0 bytes are no image"),
        ("bomb", {**whole, "png": bomb.getvalue()}, "DecompressionBombError: .*decompression bomb"),
        ("not-text", {**whole, "txt": b"\xff\xfe\xff"}, "UnicodeDecodeError: .*utf-8"),
        ("good-too", sample(7), None),
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_samples_of_a_shard_keep_their_positions(workers: int, tmp_path: Path) -> None:
    of = _damaged()
    path = pack(tmp_path / "a.tar", [(key, members) for key, members, _ in of])
    data = WebDataset(path, Pair(), index=tmp_path / "index", progress=False)
    source = open_source(data, workers=workers)
    indices = np.concatenate([indices for indices, _ in source.batches(4)]).tolist()
    assert indices == [place for place, (_, _, told) in enumerate(of) if told is None]
    assert set(source.failures) == set(range(len(of))) - set(indices)
    for place, reason in source.failures.items():
        assert re.search(of[place][2] or "", reason), reason
        assert " at 0x" not in reason  # the same in every process
        assert "\n" not in reason
    with pytest.raises(UnreadableError, match="has no txt"):
        data[1]


def test_an_error_of_a_decoder_is_told_in_one_line_with_what_was_there(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.tar", [("a", {"cls": b"1", "jpg": b"2"}), ("b", {"txt": b"x 1", "jpg": b"2"})])
    data = WebDataset(path, number_of, index=tmp_path / "index", progress=False)
    assert data.__getitems__([0, 1]) == [Unreadable("KeyError: 'txt' (there is cls, jpg)"), 1]


def test_reasons_are_the_same_in_every_process(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.tar", [("a", sample(1))])

    def decode(stored):
        raise ValueError(f"cannot use {object()} here\nand more")

    data = WebDataset(path, decode, index=tmp_path / "index", progress=False)
    assert data.__getitems__([0]) == [Unreadable("ValueError: cannot use <object object> here")]


def test_a_missing_package_or_memory_is_not_the_fault_of_a_sample(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.tar", [("a", sample(1))])
    for error in (ImportError("no such package"), MemoryError()):

        def decode(stored, error=error):
            raise error

        with pytest.raises(type(error)):
            WebDataset(path, decode, index=tmp_path / "index", progress=False)[0]


def test_pictures_come_as_bytes_or_as_hugging_face_stores_them() -> None:
    expected = torch.tensor([3, 0, 7]).view(3, 1, 1).expand(3, 3, 4) / 255
    for stored in (png(3), bytearray(png(3)), {"bytes": png(3), "path": "a.png"}):
        assert torch.equal(picture(stored), expected)
    assert picture(png(3), lambda image: (image.mode, image.size)) == ("RGB", (4, 3))
    for nothing in (None, {"bytes": None, "path": "a.png"}, 3):
        with pytest.raises(UnreadableError, match="holds no bytes"):
            picture(nothing)
