"""Reading datasets: the same samples with the same indices, however they are read."""

from __future__ import annotations

import random
from collections import namedtuple

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from diffin.errors import DatasetError
from diffin.sources import Indexed, open_source

VALUES = [float(v) for v in range(11)]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(VALUES)


class SizedStream(Stream):
    def __len__(self) -> int:
        return len(VALUES)


class Numbers(Dataset):
    """With a random part drawn from each of the global generators."""

    def __len__(self) -> int:
        return len(VALUES)

    def __getitem__(self, index: int):
        return index + torch.tensor([torch.rand(()).item(), np.random.rand(), random.random()])


def _read(source, *args, **kwargs):
    return [(indices.tolist(), batch.tolist()) for indices, batch in source.batches(*args, **kwargs)]


@pytest.mark.parametrize("dataset", [VALUES, Stream(), SizedStream()], ids=["map", "iterable", "sized"])
def test_batches_hold_consecutive_samples_and_end_at_multiples_of_align(dataset):
    source = open_source(dataset)
    assert [indices for indices, _ in _read(source, 4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    assert [indices for indices, _ in _read(source, 4, align=6)] == [[0, 1, 2, 3], [4, 5], [6, 7, 8, 9], [10]]
    assert [indices for indices, _ in _read(source, 4, 5, 9, align=6)] == [[5], [6, 7, 8]]
    assert _read(source, 3, 11) == []
    assert all(batch == [VALUES[i] for i in indices] for indices, batch in _read(source, 3))
    assert next(source.batches(1))[0].dtype == np.int64


@pytest.mark.parametrize("dataset", [VALUES, Stream(), SizedStream()], ids=["map", "iterable", "sized"])
def test_a_stop_past_the_end_is_the_end(dataset):
    assert [indices for indices, _ in _read(open_source(dataset), 20, stop=20)] == [list(range(11))]


@pytest.mark.parametrize("args", [(0,), (2, -1), (2, 5, 3), (2, 12)], ids=str)
def test_ranges_that_make_no_sense_are_refused(args):
    for dataset in (VALUES, SizedStream()):
        with pytest.raises(DatasetError, match=r"batch_size=0|do not lie in"):
            list(open_source(dataset).batches(*args))


@pytest.mark.parametrize("workers", [0, 2])
def test_random_samples_are_the_same_in_any_batch_and_worker(workers):
    expected = torch.cat([batch for _, batch in open_source(Numbers()).batches(11)])
    read = torch.cat([batch for _, batch in open_source(Numbers(), workers=workers).batches(2, align=5)])
    assert torch.equal(read, expected)
    assert len(torch.unique(expected - torch.arange(11)[:, None])) == 33


def test_reading_leaves_the_global_generators_alone():
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    for dataset in (Numbers(), Stream()):
        list(open_source(dataset, workers=1).batches(3))
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])


@pytest.mark.parametrize("dataset", [VALUES, SizedStream()], ids=["map", "iterable"])
def test_a_selection_is_read_in_ascending_order_with_the_indices_of_the_dataset(dataset):
    source = open_source(dataset).select([7, 1, 9, 1])
    assert source.length == 4
    assert _read(source, 3) == [([1, 1, 7], [1.0, 1.0, 7.0]), ([9], [9.0])]
    assert _read(source.select(np.array([1, 3])), 3) == [([1, 9], [1.0, 9.0])]


def test_a_selection_of_a_stream_of_unknown_length_is_read_by_position():
    assert _read(open_source(Stream()).select([7, 1]), 3) == [([1, 7], [1.0, 7.0])]


def test_a_selection_that_cannot_be_read_is_refused():
    with pytest.raises(DatasetError, match="ended after"):
        _read(open_source(Stream()).select([1, 10_000]), 3)
    for wrong in ([11], [-1], [0.5], [[1]]):
        with pytest.raises(DatasetError, match=r"index|indices"):
            open_source(VALUES).select(wrong)
    with pytest.raises(DatasetError, match="empty"):
        open_source(VALUES).select([])


def test_lengths_are_those_the_datasets_know():
    assert open_source(VALUES).length == 11
    assert open_source(SizedStream()).length == 11
    assert open_source(Stream()).length is None


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (iter(VALUES), "only once"),
        ((v for v in VALUES), "only once"),
        ({"train": VALUES}, "'train'.*splits"),
        ("data/train", "not a dataset"),
        (3, "not a dataset"),
        (DataLoader(TensorDataset(torch.zeros(3)), batch_size=None), "batch_size=None"),
    ],
    ids=["iterator", "generator", "mapping", "path", "number", "loader of batches"],
)
def test_what_cannot_be_read_again_in_order_is_refused_with_advice(dataset, message):
    with pytest.raises(DatasetError, match=message):
        open_source(dataset)


def test_the_collate_function_of_a_loader_is_used_unless_another_is_given():
    loader = DataLoader(VALUES, collate_fn=lambda samples: torch.tensor(samples) * 10)
    assert _read(open_source(loader), 20)[0][1] == [10 * v for v in VALUES]
    assert _read(open_source(loader, collate=torch.tensor), 20)[0][1] == VALUES


Pair = namedtuple("Pair", "a b")


def test_indexed_items_end_with_their_index_and_are_read_without_it():
    for item, expected in (
        ((1.0, 2.0), (1.0, 2.0, 0)),
        ([1.0, 2.0], (1.0, 2.0, 0)),
        (Pair(1.0, 2.0), (1.0, 2.0, 0)),
        ({"a": 1.0}, ({"a": 1.0}, 0)),
        (1.0, (1.0, 0)),
    ):
        indexed = Indexed([item])
        assert indexed[0] == expected
        assert len(indexed) == 1
    _, batch = next(open_source(Indexed([(1.0, 2.0)])).batches(1))
    assert len(batch) == 2
    with pytest.raises(DatasetError, match="map-style"):
        Indexed(Stream())


def test_a_collate_function_written_for_indexed_items_gives_a_batch_without_indices():
    def collate(samples):
        return torch.tensor([v for v, _ in samples]), torch.tensor([i for _, i in samples])

    assert _read(open_source(DataLoader(Indexed(VALUES), collate_fn=collate)), 20)[0][1] == VALUES
    with pytest.raises(DatasetError, match="indices last"):
        _read(open_source(DataLoader(Indexed(VALUES), collate_fn=lambda samples: collate(samples)[0])), 20)


def test_hugging_face_datasets_are_read_as_tensors_unless_the_caller_collates():
    datasets = pytest.importorskip("datasets", reason="needs the package 'datasets'")
    table = datasets.Dataset.from_dict({"x": [[float(i), 0.0] for i in range(5)], "label": list(range(5))})
    for data in (table, table.to_iterable_dataset(), Indexed(table)):
        for workers in (0, 1):
            batches = list(open_source(data, workers=workers).batches(2))
            assert torch.cat([batch["x"] for _, batch in batches])[:, 0].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
            assert torch.cat([batch["label"] for _, batch in batches]).tolist() == [0, 1, 2, 3, 4]
    seen = []
    list(open_source(table, collate=lambda samples: seen.extend(samples)).batches(5))
    assert seen[1] == {"x": [1.0, 0.0], "label": 1}
    with pytest.raises(DatasetError, match="splits"):
        open_source(datasets.DatasetDict({"train": table}))


def test_a_random_transform_of_a_hugging_face_dataset_is_the_same_in_any_batch():
    datasets = pytest.importorskip("datasets", reason="needs the package 'datasets'")
    table = datasets.Dataset.from_dict({"x": VALUES})
    table.set_transform(lambda columns: {"x": [v + torch.rand(()) for v in columns["x"]]})
    small = torch.cat([batch["x"] for _, batch in open_source(table).batches(2)])
    assert torch.equal(small, torch.cat([batch["x"] for _, batch in open_source(table).batches(11)]))
