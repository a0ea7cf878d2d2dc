"""Folders of images, and datasets that are given ids."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from shard_files import number_in, png
from torch.utils.data import Subset, TensorDataset

from diffin.errors import DatasetError
from diffin.export import open_data
from diffin.sources import Images, Indexed, Keyed, Unreadable, open_source

# In the order of torchvision.datasets.ImageFolder: the folder itself before the folders in it, capital letters first.
NAMES = ["B/z.PNG", "a/b.png", "a/c.jpeg", "a/b/a.png", "a/b.d/a.png"]


def folder(root: Path) -> list[str]:
    names = [*NAMES[:3], *sorted(NAMES[3:], key=lambda name: name.rsplit("/", 1)[0])]
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(number))
    (root / "a" / "notes.txt").write_text("no image")
    (root / "alone.png").write_bytes(png(9))
    return names


def test_images_come_in_the_order_of_torchvision_with_their_paths_as_keys(tmp_path: Path) -> None:
    names = folder(tmp_path)
    data = Images(tmp_path)
    assert data.classes == ["B", "a"]
    assert data.keys(range(5)) == names == list(open_data(data).keys())
    for workers in (0, 2):
        source = open_source(data, workers=workers)
        read = list(source.batches(2))
        assert [number_in(image) for _, (images, _) in read for image in images.numpy()] == list(range(5))
        assert [label for _, (_, labels) in read for label in labels.tolist()] == [0, 1, 1, 1, 1]
    assert Images(tmp_path, transform=lambda image: image.size)[0] == ((4, 3), 0)
    assert len(pickle.loads(pickle.dumps(data))) == 5


def test_an_image_that_is_none_or_gone_is_unreadable(tmp_path: Path) -> None:
    folder(tmp_path)
    data = Images(tmp_path)
    (tmp_path / "B" / "z.PNG").write_bytes(b"no picture")
    (tmp_path / "a" / "c.jpeg").unlink()
    found = data.__getitems__(range(5))
    assert found[0] == Unreadable("its 10 bytes are no image that Pillow knows")
    assert isinstance(found[2], Unreadable)
    assert "FileNotFoundError" in found[2].reason
    assert [label for _, label in (found[1], *found[3:])] == [1, 1, 1]


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="holds no images"):
        Images(tmp_path)
    with pytest.raises(DatasetError, match="there is no folder"):
        Images(tmp_path / "none")


NUMBERS = TensorDataset(torch.arange(4.0))


@pytest.mark.parametrize(
    "keys",
    [list("abcd"), np.array(list("abcd")), pa.array(list("abcd")), lambda position: "abcd"[position]],
    ids=["list", "array", "arrow", "function"],
)
def test_any_dataset_can_be_given_ids(keys) -> None:
    data = Keyed(NUMBERS, keys)
    for workers in (0, 1):
        source = open_source(data, workers=workers)
        assert source.keyed
        assert source.keys(np.array([3, 0])) == ["d", "a"]
        assert torch.cat([batch[0] for _, batch in source.batches(2)]).tolist() == [0.0, 1.0, 2.0, 3.0]
    assert open_source(Subset(data, [2, 1])).keys(np.array([0])) == ["c"]
    assert open_source(Indexed(data)).keys(np.array([1])) == ["b"]
    assert open_source(data).select([3]).keys(np.array([3])) == ["d"]


def test_numbers_become_texts() -> None:
    assert Keyed(NUMBERS, np.array([10, 11, 12, 13])).keys([2]) == ["12"]


def test_ids_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DatasetError, match="3 ids for 4 samples"):
        Keyed(NUMBERS, list("abc"))
    with pytest.raises(DatasetError, match="map-style"):
        Keyed(iter(NUMBERS), list("abcd"))


def test_a_hugging_face_dataset_can_be_given_one_of_its_columns() -> None:
    datasets = pytest.importorskip("datasets", reason="needs the package 'datasets'")
    table = datasets.Dataset.from_dict({"x": [1.0, 2.0, 3.0], "id": ["u", "v", "w"]})
    source = open_source(Keyed(table, table["id"]))
    ((_, batch),) = source.batches(3)
    assert batch["x"].tolist() == [1.0, 2.0, 3.0]
    assert source.keys(np.array([2])) == ["w"]


def test_methods_called_keys_that_are_something_else_are_no_ids() -> None:
    class Columns(list):
        def keys(self) -> list[str]:
            return ["x"]

    class Options(list):
        def keys(self, nested: bool = False) -> list[str]:
            return ["x"]

    for kind in (Columns, Options):
        source = open_source(kind([1.0, 2.0]))
        assert not source.keyed
        with pytest.raises(DatasetError, match="Keyed"):
            source.keys(np.array([0]))
