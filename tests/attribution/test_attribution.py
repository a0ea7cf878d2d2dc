"""What an attribution keeps, in which order, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pairs_of import Asked, attributed, whole
from pairs_of import pairs as all_pairs
from torch.utils.data import IterableDataset, TensorDataset

import diffin
from diffin.attribution import Attribution, collecting, replayed
from diffin.errors import DatasetError, DerivativeError, DiffinError, ScoringError
from retrained import Training, mlp, sgd

TRACIN = diffin.TracIn()


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    training = Training(mlp, sgd(momentum=0.9))
    return *training.recorded(tmp_path / "run"), training.train, training.query


def test_the_strongest_come_first_and_helping_is_negative(asked: Asked) -> None:
    found = attributed(asked, TRACIN, top=4)
    matrix = all_pairs(asked, TRACIN)
    assert found.proponents.shape == found.opponents.shape == (12, 4)
    for query in range(12):
        order = np.argsort(matrix[:, query])
        np.testing.assert_array_equal(found.proponents[query], order[:4])
        np.testing.assert_array_equal(found.opponents[query], order[::-1][:4])
    assert (found.proponent_influence[:, 0] < 0).all()
    assert (found.opponent_influence[:, 0] > 0).all()
    np.testing.assert_array_equal(found.queries, np.arange(12))
    assert not found.grouped


def test_a_sample_is_the_proponent_of_itself(asked: Asked) -> None:
    """A gradient has no greater product with any other of its length: the check that the sign is what it says."""
    task, trajectory, train, _ = asked
    found = attributed((task, trajectory, train, train), TRACIN, top=24)
    matrix = whole(found)
    assert (np.diag(matrix) < 0).all()


def test_more_than_there_are_is_all_of_them(asked: Asked) -> None:
    found = attributed(asked, TRACIN, top=1000)
    assert found.proponents.shape == (12, 24)
    np.testing.assert_array_equal(found.proponents, found.opponents[:, ::-1])


def test_of_equal_samples_the_lower_index_comes_first(asked: Asked, monkeypatch) -> None:
    task, trajectory, train, query = asked
    # As training found them, and once more in reverse: every influence comes twice or, of the first, three times.
    rows = [*range(24), *range(23, -1, -1), 0]
    twice = TensorDataset(*(t[rows] for t in train.tensors))
    monkeypatch.setattr(collecting, "_PART_ROWS", 5)
    found = attributed((task, trajectory, twice, query), TRACIN, top=49, batch_size=1)
    for index, influence in (
        (found.proponents, found.proponent_influence),
        (found.opponents, -found.opponent_influence),
    ):
        assert len(np.unique(influence[0])) == 24
        np.testing.assert_array_equal(np.diff(influence) >= 0, True)
        tied = np.diff(influence) == 0
        assert (np.diff(index)[tied] > 0).all()
        assert tied.sum() == 12 * 25


@pytest.mark.parametrize("estimator", [TRACIN, diffin.DiffIn(batch_size=8)], ids=lambda e: e.name)
def test_neither_batch_size_nor_parts_change_more_than_rounding(asked: Asked, estimator, monkeypatch, tmp_path) -> None:
    wanted = all_pairs(asked, estimator, batch_size=24)
    monkeypatch.setattr(collecting, "_PART_ROWS", 7)
    for size in (1, 5):
        found = all_pairs(asked, estimator, batch_size=size, output=tmp_path / str(size))
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-8 * np.abs(wanted).max())


def test_the_matrix_holds_every_pair(asked: Asked, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(collecting, "_PART_ROWS", 10)
    wanted = all_pairs(asked, TRACIN)
    found = attributed(asked, TRACIN, top=3, matrix=True, output=tmp_path / "out")
    parts = list(found.matrix())
    assert [len(index) for index, _ in parts] == [10, 10, 4]
    np.testing.assert_array_equal(np.concatenate([index for index, _ in parts]), np.arange(24))
    values = np.concatenate([part for _, part in parts])
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, wanted, rtol=0, atol=1e-6 * np.abs(wanted).max())


def test_samples_with_a_loss_that_is_not_finite_are_in_no_list(asked: Asked, monkeypatch, tmp_path, caplog) -> None:
    task, trajectory, train, query = asked
    inputs, targets = (t.clone() for t in train.tensors)
    inputs[[3, 17]], inputs[9] = torch.nan, torch.inf
    monkeypatch.setattr(collecting, "_PART_ROWS", 8)
    broken = task, trajectory, TensorDataset(inputs, targets), query
    found = attributed(broken, TRACIN, top=100, matrix=True, output=tmp_path / "out")
    assert found.failed.tolist() == [3, 9, 17]
    assert "3 of 24 samples" in caplog.text
    assert found.proponents.shape == (12, 21)
    matrix, good = whole(found), np.delete(np.arange(24), [3, 9, 17])
    np.testing.assert_allclose(matrix[good], all_pairs(asked, TRACIN)[good], rtol=1e-9)
    values = np.concatenate([part for _, part in found.matrix()])
    np.testing.assert_array_equal(np.isnan(values).all(axis=1), np.isnan(matrix).all(axis=1))
    assert Attribution.open(tmp_path / "out").failed.tolist() == [3, 9, 17]


def test_a_query_without_a_finite_loss_is_named(asked: Asked) -> None:
    task, trajectory, train, query = asked
    inputs, targets = (t.clone() for t in query.tensors)
    inputs[5] = torch.nan
    with pytest.raises(DerivativeError, match="query sample 5 is not finite"):
        attributed((task, trajectory, train, TensorDataset(inputs, targets)), TRACIN)


class Stream(IterableDataset):
    def __init__(self, dataset: TensorDataset) -> None:
        self._dataset = dataset

    def __iter__(self):
        return (self._dataset[index] for index in range(len(self._dataset)))


def test_streams_of_unknown_length_give_the_same(asked: Asked, monkeypatch, tmp_path: Path) -> None:
    task, trajectory, train, query = asked
    monkeypatch.setattr(collecting, "_PART_ROWS", 10)
    streams = task, trajectory, Stream(train), Stream(query)
    found = attributed(streams, diffin.DiffIn(batch_size=None), top=100, output=tmp_path / "out")
    np.testing.assert_allclose(whole(found), all_pairs(asked, diffin.DiffIn(batch_size=None)), rtol=0, atol=1e-9)
    assert found.samples == 24


def test_what_is_saved_is_opened_again(asked: Asked, tmp_path: Path) -> None:
    groups = np.arange(12) % 3 + 5
    found = attributed(asked, TRACIN, top=4, groups=groups)
    assert found.path is None
    found.save(tmp_path / "kept")
    opened = Attribution.open(tmp_path / "kept")
    for name in ("proponents", "opponents", "proponent_influence", "opponent_influence", "queries"):
        np.testing.assert_array_equal(getattr(opened, name), getattr(found, name))
    assert opened.queries.tolist() == [5, 6, 7]
    assert len(opened) == 3
    assert "3 groups x 24 samples, top 4" in repr(opened)
    with pytest.raises(ScoringError, match="holds an attribution already"):
        found.save(tmp_path / "kept")
    found.save(tmp_path / "kept", overwrite=True)


def test_one_with_a_matrix_is_saved_with_it(asked: Asked, tmp_path: Path) -> None:
    found = attributed(asked, TRACIN, matrix=True, output=tmp_path / "out")
    opened = Attribution.open(found.save(tmp_path / "copy"))
    for (_, one), (_, other) in zip(found.matrix(), opened.matrix(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_complete_one_is_opened_and_another_refused(asked: Asked, tmp_path: Path) -> None:
    first = attributed(asked, TRACIN, output=tmp_path / "out")
    written = (tmp_path / "out" / "top.parquet").stat().st_mtime_ns
    again = attributed(asked, TRACIN, output=tmp_path / "out")
    np.testing.assert_array_equal(again.proponents, first.proponents)
    assert (tmp_path / "out" / "top.parquet").stat().st_mtime_ns == written
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "attribution.json", "directions", "top.parquet",
    ]  # fmt: skip
    with pytest.raises(ScoringError, match=r"what differs: top \(20 there, 5 now\)"):
        attributed(asked, TRACIN, top=5, output=tmp_path / "out")
    with pytest.raises(DiffinError, match="another run"):
        attributed(asked, diffin.DiffIn(), output=tmp_path / "out")
    replaced = attributed(asked, diffin.DiffIn(), top=5, output=tmp_path / "out", resume=False)
    assert replaced.proponents.shape == (12, 5)


def test_other_queries_or_groups_are_not_taken_for_these(asked: Asked, tmp_path: Path) -> None:
    task, trajectory, train, query = asked
    attributed(asked, TRACIN, output=tmp_path / "out")
    other = TensorDataset(query.tensors[0].roll(1, 0), query.tensors[1].roll(1, 0))
    with pytest.raises(DiffinError, match="queries"):
        attributed((task, trajectory, train, other), TRACIN, output=tmp_path / "out")
    with pytest.raises(DiffinError, match="queries"):
        attributed(asked, TRACIN, groups=[0] * 12, output=tmp_path / "out")


def test_other_training_samples_are_refused(asked: Asked, tmp_path: Path) -> None:
    task, trajectory, train, query = asked
    attributed(asked, TRACIN, output=tmp_path / "out")
    other = TensorDataset(train.tensors[0].roll(1, 0), train.tensors[1])
    with pytest.raises(DiffinError, match="another run"):
        attributed((task, trajectory, other, query), TRACIN, output=tmp_path / "out")


def test_the_model_is_as_it_was(asked: Asked) -> None:
    task = asked[0]
    task.model.train()
    before = {name: t.clone() for name, t in task.model.state_dict().items()}
    attributed(asked, diffin.Unrolled(propagation="steps", hessian="exact"))
    assert task.model.training
    torch.testing.assert_close(dict(task.model.state_dict()), before, rtol=0, atol=0)
    assert all(p.grad is None for p in task.model.parameters())


def test_what_makes_no_sense_is_refused(asked: Asked, monkeypatch, tmp_path: Path) -> None:
    task, trajectory, train, _ = asked
    with pytest.raises(ScoringError, match="top=0"):
        attributed(asked, TRACIN, top=0)
    with pytest.raises(ScoringError, match="matrix=True needs a folder"):
        attributed(asked, TRACIN, matrix=True)
    with pytest.raises(DatasetError, match="one whole number for each of the 12"):
        attributed(asked, TRACIN, groups=[1, 2])
    with pytest.raises(DiffinError, match="does not say what it makes of single queries"):
        attributed(asked, diffin.MoSo())
    with pytest.raises(DatasetError, match="query=None"):
        attributed((task, trajectory, train, None), TRACIN)
    with pytest.raises(DiffinError, match="Replay follows the whole training"):
        attributed(asked, diffin.Replay(), parameters="0.*")
    with pytest.raises(ScoringError, match="is a recorded training"):
        attributed(asked, TRACIN, output=trajectory.path)
    with pytest.raises(ScoringError, match="the matrix was not kept"):
        next(attributed(asked, TRACIN).matrix())
    with pytest.raises(ScoringError, match="holds no attribution"):
        Attribution.open(tmp_path)
    monkeypatch.setattr(replayed, "_REPLAY_BYTES", 100)
    with pytest.raises(ScoringError, match="Replay of 12 queries about 24 samples holds"):
        attributed(asked, diffin.Replay())
