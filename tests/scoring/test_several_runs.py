"""Scores of several trainings: their mean, and the error over them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Subset

import diffin
from diffin.errors import DiffinError, ScoringError
from diffin.scoring import Scores
from diffin.scoring.influence import combined
from diffin.tasks import Classification
from retrained import Training, mlp, sgd

Runs = tuple[Classification, list[diffin.Trajectory], Training]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Three trainings that differ in their order."""
    training = Training(mlp, sgd(), steps=12)
    trajectories = []
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        training.batches = [torch.randperm(24, generator=generator)[:6] for _ in range(12)]
        trajectories.append(training.recorded(tmp_path_factory.mktemp("runs") / str(seed))[1])
    return Classification(training.model()), trajectories, training


def score(runs: Runs, trajectory: Any, **options: Any) -> Scores:
    task, _, training = runs
    settings = {
        "query": training.query, "estimator": diffin.Replay(), "derivatives": "forward", "progress": False, **options
    }  # fmt: skip
    return diffin.score(task, trajectory, training.train, **settings)


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    "estimator",
    [diffin.Replay(), diffin.Unrolled(states=3), diffin.TracIn(), diffin.InverseHessian(damping=1.0)],
    ids=lambda e: e.name,
)
def test_the_influence_is_the_mean_and_the_error_that_over_trainings(estimator: Any, runs: Runs) -> None:
    alone = np.stack([score(runs, one, estimator=estimator).influence for one in runs[1]])
    losses = np.stack([score(runs, one, estimator=estimator).loss for one in runs[1]])
    found = score(runs, runs[1], estimator=estimator)
    np.testing.assert_allclose(found.influence, alone.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.loss, losses.mean(axis=0), rtol=1e-12)
    for z in range(24):
        mean = sum(alone[:, z]) / 3
        deviation = math.sqrt(sum((value - mean) ** 2 for value in alone[:, z]) / 2)
        assert found.standard_error[z] == pytest.approx(deviation / math.sqrt(3), rel=1e-9)
    np.testing.assert_allclose(found.terms, alone.T / 3, rtol=1e-12)
    assert found.steps == (0, 1, 2)
    assert found.table.column_names == ["index", "influence", "standard_error", "loss", "run_0", "run_1", "run_2"]


def test_the_stability_is_said_of_trainings(runs: Runs) -> None:
    found = score(runs, runs[1])
    assert found.stability.kind == "runs"
    assert found.stability.checkpoints == 3
    assert found.stability.reliability is not None
    assert 0 <= found.stability.reliability <= found.stability.forecast_doubled <= 1
    assert "3 trainings are" in found.stability.sentence()
    assert "with 6 trainings" in found.stability.sentence()
    assert "noise of training" in found.stability.sentence()
    assert "3 runs" in repr(found)


def test_one_training_in_a_list_is_that_training(runs: Runs) -> None:
    np.testing.assert_array_equal(score(runs, runs[1][:1]).terms, score(runs, runs[1][0]).terms)


def test_the_same_training_twice_has_no_error(runs: Runs) -> None:
    found = score(runs, [runs[1][0]] * 2)
    np.testing.assert_allclose(found.influence, score(runs, runs[1][0]).influence, rtol=1e-12)
    np.testing.assert_array_equal(found.standard_error, 0)


@pytest.mark.parametrize("estimator", [diffin.Replay(), diffin.Unrolled(states=3)], ids=lambda e: e.name)
def test_they_are_saved_opened_and_gone_on_with(estimator: Any, runs: Runs, tmp_path: Path, monkeypatch) -> None:
    options = {"estimator": estimator, "output": tmp_path / "scores"}
    first = score(runs, runs[1], **options)
    opened = Scores.open(tmp_path / "scores")
    np.testing.assert_array_equal(opened.terms, first.terms)
    np.testing.assert_array_equal(opened.standard_error, first.standard_error)
    assert len(opened.metadata["probes"]["metadata"]["runs"]) == 3
    before = files(tmp_path / "scores")
    # As if it had been interrupted in the last training: what is there is not computed again.
    for name in before:
        if not name.startswith(("run-0", "run-1")):
            (tmp_path / "scores" / name).unlink()
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "scores").glob("run-[01]/part-*")}
    again = score(runs, runs[1], derivatives="auto", **options)
    np.testing.assert_allclose(again.terms, first.terms, rtol=1e-9)
    assert times == {file: file.stat().st_mtime_ns for file in times}
    assert files(tmp_path / "scores").keys() == before.keys()


def test_a_training_may_be_added(runs: Runs, tmp_path: Path) -> None:
    score(runs, runs[1][:2], output=tmp_path / "scores")
    found = score(runs, runs[1], output=tmp_path / "scores")
    assert found.steps == (0, 1, 2)
    np.testing.assert_array_equal(found.terms, score(runs, runs[1]).terms)


def test_other_trainings_in_the_same_folder_are_refused(runs: Runs, tmp_path: Path) -> None:
    score(runs, runs[1][:2], output=tmp_path / "scores")
    with pytest.raises(ScoringError, match="another run, query or data"):
        score(runs, runs[1][1:], output=tmp_path / "scores")
    replaced = score(runs, runs[1][1:], output=tmp_path / "scores", resume=False)
    np.testing.assert_array_equal(replaced.terms, score(runs, runs[1][1:]).terms)


def test_scores_of_one_training_are_not_overwritten_unasked(runs: Runs, tmp_path: Path) -> None:
    score(runs, runs[1][0], output=tmp_path / "scores")
    before = files(tmp_path / "scores")
    with pytest.raises(ScoringError, match=r"not of several trainings.*resume=False"):
        score(runs, runs[1], output=tmp_path / "scores")
    with pytest.raises(ScoringError, match="not of several trainings"):
        combined([score(runs, one) for one in runs[1]], tmp_path / "scores")
    assert files(tmp_path / "scores") == before
    score(runs, runs[1], output=tmp_path / "scores", resume=False)
    assert Scores.open(tmp_path / "scores").steps == (0, 1, 2)


def test_scores_of_other_data_cannot_be_combined(runs: Runs) -> None:
    task, trajectories, training = runs
    settings = {"query": training.query, "estimator": diffin.TracIn(), "derivatives": "forward", "progress": False}
    few = diffin.score(task, trajectories[0], Subset(training.train, range(10)), **settings)
    with pytest.raises(ScoringError, match=r"\[10, 24\] samples"):
        combined([few, score(runs, trajectories[1], estimator=diffin.TracIn())])


@pytest.mark.parametrize("nothing", [[], (), None, "runs/a"], ids=repr)
def test_what_is_no_training_is_refused(nothing: Any, runs: Runs) -> None:
    with pytest.raises(DiffinError, match=r"trajectory(=\[\]| is a ).*: pass "):
        score(runs, nothing)
