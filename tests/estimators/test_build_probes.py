"""Probes: what they refuse, what they keep, and that they are the same wherever they are built."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

import diffin
from cases import make
from diffin.errors import DatasetError, DiffinError, ProbeError, TrajectoryError
from diffin.probes import ProbeSet
from training import record


@pytest.fixture
def setting(tmp_path: Path):
    case = make("mlp")
    train, query = TensorDataset(*case.batch), TensorDataset(*case.query)
    return case.task, record(tmp_path / "run", case.task, train), train, query


def test_saved_probes_give_the_scores_of_fresh_ones(setting, tmp_path: Path) -> None:
    task, trajectory, train, query = setting
    estimator = diffin.DiffIn(batch_size=4)
    diffin.build_probes(
        task, trajectory, train, query=query, estimator=estimator, output=tmp_path / "probes", progress=False
    )
    loaded = diffin.score_probes(task, ProbeSet.open(tmp_path / "probes"), train, derivatives="forward", progress=False)
    fresh = diffin.score(
        task, trajectory, train, query=query, estimator=estimator, derivatives="forward", progress=False
    )
    np.testing.assert_array_equal(loaded.influence, fresh.influence)


def test_probes_do_not_depend_on_the_batch_size_beyond_rounding(setting) -> None:
    task, trajectory, train, query = setting
    sets = [
        diffin.build_probes(
            task, trajectory, train, query=query, estimator=diffin.DiffIn(), batch_size=size, progress=False
        )
        for size in (1, 5)
    ]
    for one, other in zip(*sets, strict=True):
        torch.testing.assert_close(one.probes[0].u, other.probes[0].u)


def test_the_model_is_as_it_was(setting) -> None:
    task, trajectory, train, query = setting
    task.model.train()
    before = {name: t.clone() for name, t in task.model.state_dict().items()}
    diffin.score(task, trajectory, train, query=query, progress=False)
    assert task.model.training
    torch.testing.assert_close(dict(task.model.state_dict()), before, rtol=0, atol=0)
    assert all(p.grad is None for p in task.model.parameters())


def test_samples_that_were_never_trained_on_can_be_scored(setting) -> None:
    task, trajectory, train, query = setting
    probes = diffin.build_probes(task, trajectory, train, query=query, estimator=diffin.DiffIn(), progress=False)
    scores = diffin.score_probes(task, probes, query, progress=False)
    assert np.isfinite(scores.influence).all()


def test_a_missing_query_is_asked_for(setting) -> None:
    task, trajectory, train, _ = setting
    with pytest.raises(DatasetError, match=r"query=None: DiffIn needs"):
        diffin.score(task, trajectory, train, progress=False)


def test_a_model_that_was_not_trained_is_refused(setting) -> None:
    _, trajectory, train, query = setting
    other = diffin.tasks.Classification(torch.nn.Linear(5, 3, dtype=torch.float64))
    with pytest.raises(TrajectoryError, match="build the task with the model that was trained"):
        diffin.score(other, trajectory, train, query=query, progress=False)


def test_a_pattern_that_matches_nothing_is_named(setting) -> None:
    task, trajectory, train, query = setting
    with pytest.raises(DiffinError, match=r"'head\.\*' matches no trainable parameter"):
        diffin.score(task, trajectory, train, query=query, parameters="head.*", progress=False)


def test_probes_of_another_run_are_not_overwritten(setting, tmp_path: Path) -> None:
    task, trajectory, train, query = setting

    def build(estimator: diffin.Estimator) -> ProbeSet:
        return diffin.build_probes(
            task, trajectory, train, query=query, estimator=estimator, output=tmp_path / "probes", progress=False
        )

    first = build(diffin.DiffIn())
    assert build(diffin.DiffIn()).digest == first.digest
    with pytest.raises(ProbeError, match="another run"):
        build(diffin.TracIn())
    assert ProbeSet.open(tmp_path / "probes").digest == first.digest


def test_probes_of_another_query_are_not_taken_for_those_of_this_one(setting, tmp_path: Path) -> None:
    task, trajectory, train, query = setting
    diffin.build_probes(
        task, trajectory, train, query=query, estimator=diffin.TracIn(), output=tmp_path / "p", progress=False
    )
    with pytest.raises(ProbeError, match="another run"):
        diffin.build_probes(
            task, trajectory, train, query=train, estimator=diffin.TracIn(), output=tmp_path / "p", progress=False
        )


@pytest.mark.parametrize("damage", ["truncated", "removed", "index"])
def test_damaged_probes_are_named(setting, tmp_path: Path, damage: str) -> None:
    task, trajectory, train, query = setting
    folder = tmp_path / "probes"
    diffin.build_probes(task, trajectory, train, query=query, estimator=diffin.TracIn(), output=folder, progress=False)
    victim = sorted(folder.glob("probe-*.safetensors"))[1]
    if damage == "truncated":
        victim.write_bytes(victim.read_bytes()[:-7])
    elif damage == "removed":
        victim.unlink()
    else:
        (folder / "probes.json").write_text("{")
    with pytest.raises(ProbeError, match=r"probes\.json" if damage == "index" else victim.name):
        diffin.score_probes(task, ProbeSet.open(folder), train, progress=False)


class Stream(torch.utils.data.IterableDataset):
    """Samples of a dataset, of unknown length."""

    def __init__(self, dataset: TensorDataset) -> None:
        self._dataset = dataset

    def __iter__(self):
        return iter([self._dataset[i] for i in range(len(self._dataset))])


def test_a_stream_of_unknown_length_gives_the_scores_of_the_data_set(setting) -> None:
    task, trajectory, train, query = setting
    settings = {"estimator": diffin.DiffIn(batch_size=4), "derivatives": "forward", "progress": False}
    wanted = diffin.score(task, trajectory, train, query=query, **settings)
    streamed = diffin.score(task, trajectory, Stream(train), query=Stream(query), **settings)
    np.testing.assert_allclose(streamed.influence, wanted.influence, rtol=1e-9)


def test_a_stream_and_a_trajectory_that_do_not_know_n_are_refused(setting, tmp_path: Path) -> None:
    task, trajectory, train, query = setting
    path = tmp_path / "state.pt"
    torch.save(trajectory.checkpoints[0].state, path)
    foreign = diffin.Trajectory.from_checkpoints([path], [5], [0.1])
    with pytest.raises(DatasetError, match="pass dataset_size="):
        diffin.score(task, foreign, Stream(train), query=query, progress=False)
    assert len(diffin.score(task, foreign, train, query=query, progress=False)) == len(train)


def test_the_optimizer_that_an_estimator_was_not_derived_for_is_named(tmp_path: Path, caplog) -> None:
    case = make("mlp")
    train = TensorDataset(*case.batch)
    optimizer = torch.optim.AdamW(case.task.model.parameters(), lr=1e-2)
    trajectory = record(tmp_path / "run", case.task, train, optimizer=optimizer)
    diffin.score(case.task, trajectory, train, query=TensorDataset(*case.query), progress=False)
    assert "DiffIn is derived for SGD without momentum; the run used AdamW" in caplog.text


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"batches": 0}, {"batch_size": None, "batches": 2}])
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, int | None]) -> None:
    with pytest.raises(DiffinError, match=r"DiffIn\(batch"):
        diffin.DiffIn(**wrong)
    with pytest.raises(DiffinError, match=r"MoSo\(samples=0\)"):
        diffin.MoSo(samples=0)
