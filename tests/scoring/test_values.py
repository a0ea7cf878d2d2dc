"""What is scored, and what scores must not depend on."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from diffin.derivatives import Difference, Forward
from diffin.errors import DatasetError, ScoringError
from diffin.scoring import Engine, score_probes
from diffin.scoring.plan import Settings
from diffin.sources import Indexed, open_source
from diffin.task import frozen
from diffin.tasks import Classification

QUIET = {"derivatives": Forward(), "progress": False}


def test_influence_loss_and_standard_error_equal_the_dense_reference(task, probes, dataset, reference):
    losses, terms = reference()
    scores = score_probes(task, probes, dataset, **QUIET)
    np.testing.assert_allclose(scores.terms, terms, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(scores.influence, terms.sum(axis=1), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(scores.loss, losses.mean(axis=1), rtol=1e-9)
    expected = [np.sqrt(3) * np.std(row, ddof=1) for row in terms]  # a sum of 3 draws of this deviation
    np.testing.assert_allclose(scores.standard_error, expected, rtol=1e-9)
    assert scores.steps == probes.steps


@pytest.mark.parametrize("derivatives", ["auto", "difference", "forward", "ghost"])
def test_every_back_end_by_name_agrees_with_the_dense_reference(task, probes, dataset, reference, derivatives):
    scores = score_probes(task, probes, dataset, derivatives=derivatives, progress=False)
    expected = reference()[1].sum(axis=1)
    assert np.linalg.norm(scores.influence - expected) < 1e-3 * np.linalg.norm(expected)
    used = scores.metadata["derivatives"]["name"]
    assert used == derivatives or derivatives == "auto"
    assert scores.metadata["self_check"]["chosen"] == used


@pytest.mark.parametrize("batch_size", [1, 5, 36, 37, 1000])
def test_scores_do_not_depend_on_the_batch_size(task, probes, dataset, batch_size):
    expected = score_probes(task, probes, dataset, **QUIET)
    scores = score_probes(task, probes, dataset, batch_size=batch_size, **QUIET)
    np.testing.assert_allclose(scores.terms, expected.terms, rtol=1e-12, atol=1e-14)


def test_scores_do_not_depend_on_the_order_of_the_dataset(task, probes, dataset):
    expected = score_probes(task, probes, dataset, batch_size=8, **QUIET)
    order = np.random.default_rng(0).permutation(len(dataset))
    scores = score_probes(task, probes, Subset(dataset, order.tolist()), batch_size=8, **QUIET)
    np.testing.assert_allclose(scores.terms, expected.terms[order], rtol=1e-12, atol=1e-14)


class Augmented(Dataset):
    """A dataset with a random transform, from the global generators, as most are."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int):
        inputs, target = self.dataset[index]
        return inputs + torch.randn(4) * np.random.rand(), target


@pytest.mark.parametrize("workers", [1, 2])
def test_scores_do_not_depend_on_the_number_of_workers(task, probes, dataset, workers):
    expected = score_probes(task, probes, Augmented(dataset), batch_size=8, **QUIET)
    scores = score_probes(task, probes, Augmented(dataset), batch_size=8, workers=workers, **QUIET)
    assert scores.table.equals(expected.table)


def test_random_transforms_give_a_sample_the_same_draw_in_any_batch(task, probes, dataset):
    expected = score_probes(task, probes, Augmented(dataset), batch_size=37, **QUIET)
    scores = score_probes(task, probes, Augmented(dataset), batch_size=5, part_rows=11, **QUIET)
    np.testing.assert_allclose(scores.terms, expected.terms, rtol=1e-12, atol=1e-14)


def test_the_random_generators_and_the_model_are_left_as_they_were(task, probes, dataset):
    task.model.train()
    before = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}
    torch.manual_seed(5)
    np.random.seed(5)
    expected = torch.rand(3), np.random.rand(3)
    torch.manual_seed(5)
    np.random.seed(5)
    score_probes(task, probes, Augmented(dataset), workers=2, batch_size=8, **QUIET)
    assert torch.equal(torch.rand(3), expected[0])
    assert np.array_equal(np.random.rand(3), expected[1])
    assert task.model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in task.model.state_dict().items())


def test_scores_in_memory_and_on_disk_are_the_same(task, probes, dataset, tmp_path):
    expected = score_probes(task, probes, dataset, **QUIET)
    scores = score_probes(task, probes, dataset, output=tmp_path / "out", **QUIET)
    assert scores.table.equals(expected.table)


@pytest.mark.parametrize("part_rows", [1, 10, 37, 40])
def test_scores_do_not_depend_on_how_they_are_cut_into_parts(task, probes, dataset, tmp_path, part_rows):
    expected = score_probes(task, probes, dataset, batch_size=8, **QUIET)
    scores = score_probes(task, probes, dataset, batch_size=8, part_rows=part_rows, output=tmp_path / "out", **QUIET)
    assert len(list((tmp_path / "out").glob("part-*.parquet"))) == -(-37 // part_rows)
    np.testing.assert_allclose(scores.terms, expected.terms, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("block_bytes", [1, 600, 10**9])
def test_checkpoints_loaded_block_by_block_measure_what_resident_ones_measure(task, probes, dataset, block_bytes):
    source = open_source(dataset)
    with frozen(task.model):
        resident = list(Engine(task, probes, Forward()).measure(source.batches(5)))
        engine = Engine(task, probes, Forward(), resident_bytes=0, block_bytes=block_bytes)
        advanced: list[int] = []
        reloaded = list(engine.measure(source.batches(5), advanced.append))
    assert sum(advanced) == len(dataset)
    for a, b in zip(resident, reloaded, strict=True):
        assert np.array_equal(a.index, b.index)
        assert np.array_equal(a.terms, b.terms)
        assert np.array_equal(a.losses, b.losses)


class Stream(IterableDataset):
    """A dataset that can only be read from its start, with or without a length."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __iter__(self) -> Iterator:
        return (self.dataset[index] for index in range(len(self.dataset)))


class SizedStream(Stream):
    def __len__(self) -> int:
        return len(self.dataset)


def _as_dictionaries(batch):
    return UserDict(inputs=torch.stack([x for x, _ in batch]), labels=torch.tensor([int(y) for _, y in batch]))


@pytest.mark.parametrize(
    "wrap",
    [list, Stream, SizedStream, Indexed, lambda d: Subset(d, range(len(d)))],
    ids=["list", "iterable", "sized iterable", "indexed", "subset"],
)
def test_any_kind_of_dataset_gives_the_same_scores(task, probes, dataset, wrap, tmp_path):
    expected = score_probes(task, probes, dataset, batch_size=8, **QUIET)
    scores = score_probes(task, probes, wrap(dataset), batch_size=8, part_rows=10, output=tmp_path / "out", **QUIET)
    np.testing.assert_allclose(scores.terms, expected.terms, rtol=1e-12, atol=1e-14)


def test_a_loader_is_read_in_the_order_of_its_dataset(task, probes, dataset):
    expected = score_probes(task, probes, dataset, batch_size=8, **QUIET)
    for inner in (dataset, Indexed(dataset), Stream(dataset)):
        shuffle = not isinstance(inner, IterableDataset)
        scores = score_probes(task, probes, DataLoader(inner, batch_size=3, shuffle=shuffle), batch_size=8, **QUIET)
        assert scores.table.equals(expected.table)


class Keywords(torch.nn.Module):
    """A model that takes its inputs by keyword, as those of Hugging Face do."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.model(inputs)


@pytest.fixture
def keyword_case(task, make_probes, tmp_path):
    """The same directions, under the names of the wrapped model."""
    keyword_task = Classification(Keywords(task.model))
    return keyword_task, make_probes(keyword_task, tmp_path / "keyword-probes")


def test_dictionaries_and_encodings_give_the_scores_of_tuples(task, probes, dataset, keyword_case):
    expected = score_probes(task, probes, dataset, **QUIET)
    keyword_task, keyword_probes = keyword_case
    scores = score_probes(keyword_task, keyword_probes, dataset, collate=_as_dictionaries, **QUIET)
    np.testing.assert_allclose(scores.terms, expected.terms, rtol=1e-12, atol=1e-14)
    samples = [{"inputs": inputs, "label": target} for inputs, target in dataset]
    scores = score_probes(keyword_task, keyword_probes, samples, **QUIET)
    np.testing.assert_allclose(scores.terms, expected.terms, rtol=1e-12, atol=1e-14)


def test_hugging_face_datasets_give_the_scores_of_tuples(task, probes, dataset, keyword_case):
    datasets = pytest.importorskip("datasets", reason="needs the package 'datasets'")
    inputs, targets = dataset.tensors
    columns = {"inputs": inputs.float().tolist(), "label": targets.tolist()}
    rounded = torch.utils.data.TensorDataset(inputs.float().double(), targets)
    expected = score_probes(task, probes, rounded, batch_size=8, **QUIET)
    keyword_task, keyword_probes = keyword_case
    table = datasets.Dataset.from_dict(columns).cast_column("inputs", datasets.List(datasets.Value("float64")))
    as_double = table.with_format("torch", dtype=torch.float64)

    def widened(samples):
        batch = torch.utils.data.default_collate(samples)
        return {"inputs": batch["inputs"].double(), "label": batch["label"].long()}

    plain = table.with_format("torch")
    for data, collate in ((plain, widened), (as_double, widened), (plain.to_iterable_dataset(), widened)):
        scores = score_probes(keyword_task, keyword_probes, data, batch_size=8, collate=collate, **QUIET)
        np.testing.assert_allclose(scores.influence, expected.influence, rtol=1e-6)
    scores = score_probes(keyword_task, keyword_probes, plain, batch_size=8, workers=2, collate=widened, **QUIET)
    np.testing.assert_allclose(scores.influence, expected.influence, rtol=1e-6)


def test_one_checkpoint_has_no_standard_error(task, make_probes, dataset, tmp_path):
    scores = score_probes(task, make_probes(task, tmp_path / "one", steps=(3,)), dataset, **QUIET)
    assert np.isnan(scores.standard_error).all()
    assert np.isfinite(scores.influence).all()


def test_the_difference_back_end_is_recorded_with_its_step(task, probes, dataset):
    scores = score_probes(task, probes, dataset, derivatives=Difference(1e-4), progress=False)
    assert scores.metadata["derivatives"] == {"name": "difference", "step": 1e-4}


def test_progress_reaches_the_number_of_samples(task, probes, dataset, capsys):
    score_probes(task, probes, dataset, derivatives=Forward())
    assert f"{len(dataset)}/{len(dataset)}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong", [{"batch_size": 0}, {"batch_size": "large"}, {"part_rows": 0}, {"workers": -1}], ids=str
)
def test_numbers_that_make_no_sense_are_refused_by_name(task, probes, dataset, wrong):
    with pytest.raises((ScoringError, DatasetError), match=next(iter(wrong))):
        score_probes(task, probes, dataset, **QUIET, **wrong)


def test_the_automatic_batch_size_is_recorded_and_never_above_a_part(task, probes, dataset):
    assert score_probes(task, probes, dataset, **QUIET).metadata["batch_size"] == 256
    assert score_probes(task, probes, dataset, part_rows=10, **QUIET).metadata["batch_size"] == 10
    assert Settings("auto", "auto", 1).batch_size == "auto"
