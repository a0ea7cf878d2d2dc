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
    build = lambda estimator: diffin.build_probes(  # noqa: E731
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
