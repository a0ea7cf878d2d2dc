"""Groups of samples: what is taken together depends on seed and position alone, and so do scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from contrastive_training import objective, pairs, towers
from diffin import score_probes
from diffin.derivatives import Difference, Forward
from diffin.derivatives.base import Measured
from diffin.errors import DatasetError, ScoringError, UnreadableError
from diffin.probes import ProbeSet
from diffin.scoring.batching import BackOff
from diffin.scoring.engine import Engine
from diffin.sources import open_source
from diffin.sources.composed import COMPANY, Composed, groups_of, shuffled
from diffin.task import frozen
from diffin.tasks import Contrastive

COUNT, GROUP, PART = 29, 4, 12


@pytest.fixture
def task() -> Contrastive:
    torch.manual_seed(0)
    return Contrastive(towers().double(), group_size=GROUP)


@pytest.fixture
def dataset() -> TensorDataset:
    return pairs(COUNT)


@pytest.fixture
def probes(task: Contrastive, make_probes: Callable[..., ProbeSet], tmp_path: Path) -> ProbeSet:
    return make_probes(task, tmp_path / "probes")


def read(source: Composed, start: int = 0, stop: int | None = None, part: int = PART) -> list[tuple[Any, Tensor]]:
    return [(i, batch[0]) for i, batch in source.batches(source.group_size, start, stop, align=part)]


@pytest.mark.parametrize("length", [1, 3, 4, 5, 11, 12, 13, 14, 29])
def test_every_sample_is_in_one_group_of_its_own_part_and_groups_are_full(length: int) -> None:
    dataset = pairs(length)
    source = Composed(open_source(dataset), GROUP, window=8)
    seen = []
    for indices, images in read(source):
        own = indices[indices != COMPANY]
        seen += own.tolist()
        assert len(indices) == len(images) == min(GROUP, length)
        assert len(set(own // PART)) == 1
        assert len(set(own % PART // 8)) == 1  # of one window
        assert len({tuple(image) for image in images.tolist()}) == len(images)  # company is of others
        torch.testing.assert_close(images[indices != COMPANY], dataset.tensors[0][own])
    assert sorted(seen) == list(range(length))


def test_groups_are_mixed_inside_a_window_and_depend_on_the_seed() -> None:
    first, again, other = (
        [group.positions.tolist() for group in groups_of(32, 64, 100, 8, seed)] for seed in (0, 0, 1)
    )
    assert first == again != other
    order = [position for group in first for position in group]
    assert sorted(order) == list(range(32, 64)) != order
    tail = groups_of(96, 100, 100, 8, 0)[0]
    assert sorted(tail.positions[: tail.own]) == [96, 97, 98, 99]
    assert len(set(tail.positions)) == 8
    assert groups_of(0, 3, 3, 8, 0)[0].own == 3


def test_a_part_alone_is_what_it_is_among_all(dataset: TensorDataset) -> None:
    source = Composed(open_source(dataset), GROUP, window=8)
    whole = read(source)
    alone = [group for start in (24, 0, 12) for group in read(source, start, min(start + PART, COUNT))]
    by_first = {tuple(indices): images for indices, images in whole}
    assert len(by_first) == len(alone) == len(whole)
    for indices, images in alone:
        torch.testing.assert_close(images, by_first[tuple(indices)])


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        ({"batch_size": 5}, "pass 4, the size of the groups"),
        ({"start": 3}, "whole parts"),
        ({"stop": 18}, "whole parts"),
    ],
)
def test_other_batches_are_refused(arguments: dict[str, int], advice: str, dataset: TensorDataset) -> None:
    with pytest.raises(DatasetError, match=advice):
        list(Composed(open_source(dataset), GROUP).batches(**{"batch_size": GROUP, "align": PART, **arguments}))


def test_samples_that_can_only_be_read_in_order_are_refused() -> None:
    class Stream(IterableDataset[int]):
        def __iter__(self) -> Iterator[int]:
            return iter(range(9))

    with pytest.raises(DatasetError, match="map-style"):
        Composed(open_source(Stream()), GROUP)
    for group_size, window in ((1, None), (4, 3)):
        with pytest.raises(DatasetError, match="group of 2 or more"):
            Composed(open_source([1, 2, 3]), group_size, window=window)


def test_what_curvature_is_measured_on_comes_in_whole_groups(dataset: TensorDataset) -> None:
    first, again, other = (list(shuffled(open_source(dataset), 8, seed)) for seed in ((0, 1), (0, 1), (0, 2)))
    assert [len(images) for images, _ in first] == [8] * 3
    torch.testing.assert_close(first, again)
    assert not torch.equal(first[0][0], other[0][0])
    rows = {tuple(row) for images, _ in first for row in images.tolist()}
    assert len(rows) == 24
    assert rows <= {tuple(row) for row in dataset.tensors[0].tolist()}
    by_two = [list(shuffled(open_source(dataset), 8, (0, 1), share=(rank, 2))) for rank in (0, 1)]
    torch.testing.assert_close([by_two[0][0], by_two[1][0], by_two[0][1]], first)
    assert [len(images) for images, _ in shuffled(open_source(pairs(5)), 8, (0,))] == [5]


def dense_terms(task: Contrastive, probes: ProbeSet, dataset: TensorDataset, part: int) -> np.ndarray:
    """The derivatives of the effects, group by group, by autograd through loops over pairs. Float64[ndarray, "N m"]"""
    found = np.full((len(dataset), len(probes)), np.nan)
    for column, checkpoint in enumerate(probes):
        model = towers().double()
        model.load_state_dict(checkpoint.state)
        parameters = dict(model.named_parameters())
        for start in range(0, len(dataset), part):
            end = min(start + part, len(dataset))
            for group in groups_of(start, end, len(dataset), task.group_size or 0, task.group_seed):
                images, texts = (t[group.positions] for t in dataset.tensors)
                weights = torch.ones(len(images), dtype=torch.float64, requires_grad=True)
                total = objective("clip", model, images, texts, weights)
                effects = torch.autograd.grad(total, weights, create_graph=True)[0]
                for position, effect in zip(group.positions[: group.own], effects, strict=False):
                    found[position, column] = 0
                    gradient = torch.autograd.grad(effect, list(parameters.values()), create_graph=True)
                    for probe in checkpoint.probes:
                        value = sum((g * probe.u[n]).sum() for n, g in zip(parameters, gradient, strict=True))
                        if probe.mixed is not None:
                            v, d = probe.mixed
                            along = sum((g * v[n]).sum() for n, g in zip(parameters, gradient, strict=True))
                            second = torch.autograd.grad(along, list(parameters.values()), retain_graph=True)
                            value = value + sum((g * d[n]).sum() for n, g in zip(parameters, second, strict=True))
                        found[position, column] += probe.weight * float(value.detach())
    return found


def test_scores_are_the_derivatives_of_the_effects_in_the_groups(
    task: Contrastive, probes: ProbeSet, dataset: TensorDataset
) -> None:
    wanted = dense_terms(task, probes, dataset, PART)
    forward = score_probes(task, probes, dataset, derivatives=Forward(), part_rows=PART, progress=False)
    difference = score_probes(task, probes, dataset, derivatives=Difference(1e-5), part_rows=PART, progress=False)
    np.testing.assert_allclose(forward.terms, wanted, rtol=1e-8, atol=1e-10 * np.abs(wanted).max())
    np.testing.assert_allclose(difference.terms, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())
    np.testing.assert_array_equal(forward.index, np.arange(COUNT))


def test_scores_do_not_depend_on_workers_on_the_order_of_parts_or_on_an_interruption(
    task: Contrastive, probes: ProbeSet, dataset: TensorDataset, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"derivatives": Forward(), "part_rows": PART, "progress": False}
    wanted = score_probes(task, probes, dataset, output=tmp_path / "a", **options)
    by_workers = score_probes(task, probes, dataset, workers=2, **options)
    assert wanted.table.equals(by_workers.table)
    # A part that is lost is measured alone, after those that follow it.
    (lost,) = sorted((tmp_path / "a").glob("**/*00001*.parquet"))
    before = lost.read_bytes()
    lost.unlink()
    again = score_probes(task, probes, dataset, output=tmp_path / "a", **options)
    assert wanted.table.equals(again.table)
    assert lost.read_bytes() == before
    other = Contrastive(task.model, group_size=GROUP, seed=1)
    with pytest.raises(ScoringError, match=r"'seed': 0.*'seed': 1"):
        score_probes(other, probes, dataset, output=tmp_path / "a", **options)
    assert not np.allclose(score_probes(other, probes, dataset, **options).influence, wanted.influence)


def test_blocks_of_groups_are_measured_as_all_checkpoints_at_once(
    task: Contrastive, probes: ProbeSet, dataset: TensorDataset
) -> None:
    source = Composed(open_source(dataset), GROUP)
    found, told = [], []
    with frozen(task.model):
        for options in ({}, {"resident_bytes": 0, "block_bytes": 600}):
            engine = Engine(task, probes, Forward(), **options)
            amounts: list[int] = []
            rows = list(engine.measure(source.batches(GROUP, align=PART), amounts.append))
            found.append({int(i): t for one in rows for i, t in zip(one.index, one.terms, strict=True)})
            told.append(sum(amounts))
    assert told == [COUNT, COUNT]  # company is not counted
    assert sorted(found[0]) == sorted(found[1]) == list(range(COUNT))
    np.testing.assert_array_equal([found[0][i] for i in range(COUNT)], [found[1][i] for i in range(COUNT)])


def test_sizes_that_do_not_fit_groups_are_refused(task: Contrastive, probes: ProbeSet, dataset: TensorDataset) -> None:
    with pytest.raises(ScoringError, match="another group_size"):
        score_probes(task, probes, dataset, batch_size=8, progress=False)
    with pytest.raises(ScoringError, match="part_rows=3"):
        score_probes(task, probes, dataset, part_rows=3, progress=False)
    score_probes(task, probes, dataset, batch_size=GROUP, derivatives=Forward(), progress=False)


def test_a_group_that_does_not_fit_into_memory_is_never_halved() -> None:
    def measure(batch: Any) -> Measured:
        raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(ScoringError, match="lower group_size"):
        BackOff(whole=True)(measure, torch.zeros(4, 1), 4)


class Holes(Dataset[Any]):
    """Some samples cannot be read."""

    def __init__(self, dataset: TensorDataset, missing: set[int]) -> None:
        self._dataset, self._missing = dataset, missing

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Any:
        if index in self._missing:
            raise UnreadableError(f"no picture {index}")
        return self._dataset[index]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_sample_that_cannot_be_read_is_left_out_of_its_group(workers: int, dataset: TensorDataset) -> None:
    missing = {2, 13, 28}
    source = Composed(open_source(Holes(dataset, missing), workers=workers), GROUP, window=8)
    whole = {tuple(indices): images for indices, images in read(Composed(open_source(dataset), GROUP, window=8))}
    found = read(source)
    assert source.failures == {index: f"no picture {index}" for index in missing}
    own = [index for indices, _ in found for index in indices if index != COMPANY]
    assert sorted(own) == sorted(set(range(COUNT)) - missing)
    assert {len(indices) for indices, _ in found} <= {2, 3, 4}
    intact = [indices for indices in whole if not missing & set(indices)]
    assert len(intact) >= len(whole) - 2 * len(missing)
