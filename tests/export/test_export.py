"""What is written is what stays, in order, under its labels, and nothing else; or there is nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from written import (
    NAMES,
    Sample,
    hugging_face,
    labels_of,
    read_hugging_face,
    read_images,
    read_parquet,
    read_shards,
    write_images,
    write_parquet,
    write_shards,
)

from diffin.errors import DatasetError
from diffin.export import Chosen, export, export_parts, open_data

SIZE = 40
LABELS = sorted(labels_of(SIZE))


def images(folder: Path) -> Any:
    write_images(folder, LABELS)
    return folder


def saved(folder: Path) -> Any:
    hugging_face(LABELS).save_to_disk(str(folder))
    return folder


def shuffled(folder: Path) -> Any:
    """An object with an index of its own, and a transform."""
    order = np.random.default_rng(1).permutation(SIZE)
    dataset = hugging_face(np.array(LABELS)[order].tolist())
    texts = hugging_face(LABELS)
    back = dataset.remove_columns(["image", "text"]).select(np.argsort(order))
    assert back["intent"][:] == LABELS
    return texts.select(order).select(np.argsort(order)).with_transform(lambda rows: {"text": rows["text"]})


def table(folder: Path) -> Any:
    write_parquet(folder, LABELS)
    return folder


def files(folder: Path) -> Any:
    return write_parquet(folder, LABELS)


def shards(folder: Path) -> Any:
    write_shards(folder, LABELS)
    return folder


def json_shards(folder: Path) -> Any:
    return write_shards(folder, LABELS, label="label")


def read_json_shards(folder: Path) -> list[Sample]:
    return read_shards(folder, "label")


KINDS: list[tuple[Callable[[Path], Any], Callable[[Path], list[Sample]]]] = [
    (images, read_images),
    (saved, read_hugging_face),
    (shuffled, read_hugging_face),
    (table, read_parquet),
    (files, read_parquet),
    (shards, read_shards),
    (json_shards, read_json_shards),
]
every_kind = pytest.mark.parametrize(("write", "read"), KINDS, ids=[write.__name__ for write, _ in KINDS])


def left(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def some(seed: int = 0, count: int = 23) -> Any:
    return np.sort(np.random.default_rng(seed).choice(SIZE, count, replace=False))


@every_kind
def test_what_stays_is_written_in_order(write: Any, read: Any, tmp_path: Path) -> None:
    data = open_data(write(tmp_path / "data"))
    assert data.size == SIZE
    export(data, tmp_path / "out", Chosen(SIZE, some()))
    assert read(tmp_path / "out") == [(index, NAMES[LABELS[index]]) for index in some().tolist()]
    assert sorted(entry.name for entry in tmp_path.iterdir() if entry.name != "data") == ["out"]


@every_kind
def test_relabelled_samples_have_their_new_label_and_others_their_old_one(
    write: Any, read: Any, tmp_path: Path
) -> None:
    source = write(tmp_path / "data")
    before = left(tmp_path / "data") if (tmp_path / "data").exists() else []
    index, given = some(), np.array(LABELS)
    labels = given[index]
    labels[::4] = (labels[::4] + 1) % 3
    chosen = Chosen(SIZE, index, given, labels)
    assert len(chosen.relabelled) == 6
    export(open_data(source), tmp_path / "out", chosen)
    expected = [(int(at), NAMES[label]) for at, label in zip(index, labels, strict=True)]
    found = read(tmp_path / "out")
    if write is images:  # Their order is that of the folders.
        found, expected = sorted(found), sorted(expected)
    assert found == expected
    assert (left(tmp_path / "data") if before else []) == before, "the source was written to"


@every_kind
def test_classes_may_be_numbered_in_any_way(write: Any, read: Any, tmp_path: Path) -> None:
    renumbered = np.array([7, 5, 6])[LABELS]
    labels = renumbered.copy()
    labels[0] = 6
    export(open_data(write(tmp_path / "data")), tmp_path / "out", Chosen(SIZE, np.arange(SIZE), renumbered, labels))
    assert dict(read(tmp_path / "out"))[0] == "cat"


@every_kind
def test_other_data_are_refused_and_nothing_is_written(write: Any, read: Any, tmp_path: Path) -> None:
    data = open_data(write(tmp_path / "data"))
    before = left(tmp_path)
    with pytest.raises(DatasetError, match=r"holds 40 samples, and 41 were scored"):
        export(data, tmp_path / "deep" / "out", Chosen(SIZE + 1, some()))
    other_order = np.roll(LABELS, 3)
    with pytest.raises(DatasetError, match=r"in another order"):
        export(data, tmp_path / "deep" / "out", Chosen(SIZE, some(), other_order))
    assert left(tmp_path) == before


@every_kind
def test_what_is_there_is_not_touched(write: Any, read: Any, tmp_path: Path) -> None:
    data = open_data(write(tmp_path / "data"))
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").touch()
    with pytest.raises(DatasetError, match="is not empty"):
        export(data, out, Chosen(SIZE, some()))
    assert left(out) == ["mine"]
    (out / "mine").unlink()
    (tmp_path / "out.part").mkdir()
    (tmp_path / "out.part" / "mine").touch()
    with pytest.raises(DatasetError, match="in the way"):
        export(data, out, Chosen(SIZE, some()))
    assert left(tmp_path / "out.part") == ["mine"]
    (tmp_path / "out.part" / "mine").rename(tmp_path / "elsewhere")
    export(data, out, Chosen(SIZE, some()))  # An empty folder is as good as none.
    assert len(read(out)) == 23
    assert not (tmp_path / "out.part").exists()


@every_kind
def test_several_parts_appear_together(write: Any, read: Any, tmp_path: Path) -> None:
    data = open_data(write(tmp_path / "data"))
    with pytest.raises(DatasetError, match="were scored"):
        export_parts(data, tmp_path / "out", {"0.1": Chosen(SIZE, some()), "0.3": Chosen(SIZE + 1, some())})
    assert not (tmp_path / "out").exists()
    export_parts(data, tmp_path / "out", {"0.1": Chosen(SIZE, some(1, 4)), "0.3": Chosen(SIZE, some(2, 12))})
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0.1", "0.3"]
    assert [number for number, _ in read(tmp_path / "out" / "0.3")] == some(2, 12).tolist()


def test_a_failure_half_way_leaves_nothing(tmp_path: Path) -> None:
    data = open_data(images(tmp_path / "data"))
    paths = sorted((tmp_path / "data").rglob("*.png"))
    paths[30].unlink()
    with pytest.raises(DatasetError, match="could not write"):
        export(data, tmp_path / "out", Chosen(SIZE, np.arange(SIZE)))
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_the_destination_may_not_lie_inside_the_data(tmp_path: Path) -> None:
    data = open_data(images(tmp_path / "data"))
    (tmp_path / "link").symlink_to(tmp_path / "data")
    for inside in (tmp_path / "data" / "out", tmp_path / "link" / "ant" / "out"):
        with pytest.raises(DatasetError, match="lies inside"):
            export(data, inside, Chosen(SIZE, some()))


def test_labels_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    data = open_data(table(tmp_path / "data"))
    merged = np.minimum(LABELS, 1)
    labels = merged.copy()
    labels[0] = 1
    with pytest.raises(DatasetError, match="class 1 is written 'bee', 'cat'"):
        export(data, tmp_path / "out", Chosen(SIZE, np.arange(SIZE), merged, labels))
    labels = np.array(LABELS)
    labels[0] = 3
    with pytest.raises(DatasetError, match=r"no sample of .* is of class 3"):
        export(data, tmp_path / "out", Chosen(SIZE, np.arange(SIZE), np.array(LABELS), labels))
    # Where numbers are written, a number that no sample has can be.
    numbered = open_data(shards(tmp_path / "shards"))
    given = np.array(LABELS)
    labels = given.copy()
    labels[0] = 3
    export(numbered, tmp_path / "out", Chosen(SIZE, np.arange(SIZE), given, labels))


def test_labels_that_are_not_found_matter_only_where_one_changes(tmp_path: Path) -> None:
    data = open_data(write_shards(tmp_path / "data", LABELS, label="kind"))
    assert data.label is None
    given = np.array(LABELS)
    export(data, tmp_path / "out", Chosen(SIZE, some(), given, given[some()]))
    labels = given[some()]
    labels[0] += 1
    with pytest.raises(DatasetError, match="label_column"):
        export(data, tmp_path / "other", Chosen(SIZE, some(), given, labels))
    named = open_data(tmp_path / "data", label_column="kind")
    export(named, tmp_path / "other", Chosen(SIZE, some(), given, labels))
    assert read_shards(tmp_path / "other", "kind")[0][1] == NAMES[labels[0]]


@pytest.mark.parametrize(
    ("index", "match"),
    [([], "at least one"), ([3, 2], "ascend"), ([1, 1], "ascend"), ([40], "ascend"), ([-1], "ascend")],
)
def test_indices_that_make_no_sense(index: list[int], match: str) -> None:
    with pytest.raises(DatasetError, match=match):
        Chosen(SIZE, np.array(index, dtype=np.int64))


def test_what_is_no_data_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "table.csv").write_text("a,b")
    with pytest.raises(DatasetError, match="holds no images"):
        open_data(tmp_path / "empty")
    with pytest.raises(DatasetError, match=r"all \.parquet or all \.tar"):
        open_data(tmp_path / "table.csv")
    with pytest.raises(DatasetError, match="there is no"):
        open_data(tmp_path / "absent")
    with pytest.raises(DatasetError, match="a dict cannot be written"):
        open_data({})
    with pytest.raises(DatasetError, match="no single column 'kind'"):
        open_data(table(tmp_path / "table"), label_column="kind")
    with pytest.raises(DatasetError, match="the same name"):
        open_data([*files(tmp_path / "a"), *files(tmp_path / "b")])
    with pytest.raises(DatasetError, match="no label_column"):
        open_data(images(tmp_path / "images"), label_column="kind")


def test_one_split_has_to_be_named(tmp_path: Path) -> None:
    import datasets

    datasets.DatasetDict({"train": hugging_face(LABELS)}).save_to_disk(str(tmp_path / "data"))
    with pytest.raises(DatasetError, match="the splits train"):
        open_data(tmp_path / "data")
    assert open_data(tmp_path / "data" / "train").label == "intent"
