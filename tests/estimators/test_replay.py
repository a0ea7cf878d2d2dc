"""Replay against trainings taken again with other weights, in float64."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import killed_build
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import diffin
from diffin.derivatives.gradient import SampleSet
from diffin.errors import DatasetError, DerivativeError, DiffinError, ScoringError
from diffin.estimators.replay import Replayed
from diffin.rerun import Rerun, walk
from diffin.scoring import Scores
from diffin.sources import open_source
from diffin.tasks import Classification
from repeatable import REPEATABLE, set_of
from retrained import Training, mlp, sgd


def rerun_of(training: Training, path: Path) -> Rerun:
    task, trajectory = training.recorded(path)
    return Rerun(task, trajectory, open_source(training.train))


EXACT = diffin.Replay(saturation=0.0)


def replayed(training: Training, path: Path, *queries: SampleSet) -> Replayed:
    return EXACT.walk(rerun_of(training, path), queries or [set_of(training.query)], progress=False)


def derivative(of: Callable[[Tensor], Tensor], along: Tensor) -> float:
    """By central differences of fourth order: they leave out h^4, and rounding adds 1e-16 / h.

    Smaller steps hardly ever meet the kinks of amsgrad and of clipping.
    """
    h = 2e-4 / float(along.norm())
    one, two = (float(of(1 + k * h * along) - of(1 - k * h * along)) for k in (1, 2))
    return (8 * one - two) / (12 * h)


def directions(training: Training) -> list[Tensor]:
    """A single sample, and a direction in which the weights of all samples change."""
    everywhere = torch.randn(training.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return [torch.eye(training.size, dtype=torch.float64)[7], everywhere]


@pytest.mark.parametrize("name", REPEATABLE)
def test_it_is_the_derivative_of_training_again_with_other_weights(name: str, tmp_path: Path) -> None:
    training = REPEATABLE[name]()
    found = replayed(training, tmp_path / "run")
    influence = found.influence[0]
    for along in directions(training):
        wanted = derivative(lambda weights: training.query_losses(weights).mean(), along)
        size = float(np.linalg.norm(influence) * along.norm())
        assert influence @ along.numpy() == pytest.approx(wanted, rel=0, abs=1e-9 * size)
    assert found.starts == (0, 8)
    assert found.distance < 1e-9
    np.testing.assert_allclose(found.terms.sum(axis=2), found.influence)


@pytest.mark.parametrize("name", ["momentum", "adam", "amsgrad", "groups of adamw"])
def test_saturation_is_of_adam_only_and_leaves_out_little(name: str, tmp_path: Path) -> None:
    training = REPEATABLE[name]()
    rerun = rerun_of(training, tmp_path / "run")
    exact, usual, none = (
        diffin.Replay(saturation=share).walk(rerun, [set_of(training.query)], progress=False).influence
        for share in (0.0, 1e-3, 1e9)
    )
    if name == "momentum":
        np.testing.assert_array_equal(exact, none)
    else:  # Nothing here is saturated to a thousandth; beyond all bounds, everything is, and nothing has an influence.
        np.testing.assert_array_equal(exact, usual)
        np.testing.assert_array_equal(none, 0)


def test_each_of_several_queries_is_answered_as_if_alone(tmp_path: Path) -> None:
    training = REPEATABLE["batch norm"]()
    x, y = training.query.tensors
    parts = [set_of(TensorDataset(x[rows], y[rows])) for rows in (slice(0, 4), slice(4, 12))]
    whole, *each = (
        replayed(training, tmp_path / str(number), *queries)
        for number, queries in enumerate(([*parts, set_of(training.query)], parts[:1], parts[1:]))
    )
    for number, one in enumerate(each):
        np.testing.assert_allclose(whole.terms[number], one.terms[0], rtol=1e-10, atol=1e-16)
    # The mean of the losses of all is the mean of the means, by their sizes.
    np.testing.assert_allclose(whole.terms[2], (4 * whole.terms[0] + 8 * whole.terms[1]) / 12, rtol=1e-8, atol=1e-14)


def test_what_was_in_no_batch_has_no_influence(tmp_path: Path) -> None:
    training = REPEATABLE["sgd"]()
    seen = np.unique(torch.cat(training.batches[:20]).numpy())
    assert sorted(set(range(24)) - set(seen.tolist())) == [22, 23]
    found = replayed(training, tmp_path / "run")
    assert not found.terms[:, 22:].any()
    assert not found.mean_losses[22:].any()
    assert (found.influence[0, seen] != 0).all()
    scores = diffin.score(
        Classification(training.model()), diffin.Trajectory.open(tmp_path / "run"), training.train,
        query=training.query, estimator=diffin.Replay(), progress=False,
    )  # fmt: skip
    np.testing.assert_array_equal(scores.influence[22:], 0)


def test_the_losses_are_those_that_training_saw(tmp_path: Path) -> None:
    """At the first step, and in the mean over the steps: a sample of a batch that comes again and again."""
    training = Training(mlp, sgd(), steps=9, checkpoints=[0, 1])
    training.batches = [torch.arange(6)] * 9
    found = replayed(training, tmp_path / "run")
    seen = []
    for steps in range(9):
        x, y = training.train.tensors
        training.steps = steps
        model = training.run()
        seen.append(torch.nn.functional.cross_entropy(model(x[:6]), y[:6], reduction="none").detach())
    np.testing.assert_allclose(found.mean_losses[:6], torch.stack(seen).mean(0), rtol=1e-10)


@pytest.mark.parametrize("name", ["dropout in micro-batches", "batch norm", "changing adam"])
def test_states_that_do_not_fit_are_computed_again_to_the_same_numbers(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = REPEATABLE[name]()
    rerun = rerun_of(training, tmp_path / "run")
    before = diffin.Replay().walk(rerun, [set_of(training.query)], progress=False)
    monkeypatch.setattr(walk, "_HELD_BYTES", 1)
    taken = []
    plain = rerun.advance
    monkeypatch.setattr(rerun, "advance", lambda state, **options: taken.append(state.step) or plain(state, **options))
    after = diffin.Replay().walk(rerun, [set_of(training.query)], progress=False)
    assert len(taken) > 20, "nothing was computed twice"
    assert max(map(taken.count, taken)) == 2
    np.testing.assert_array_equal(after.terms, before.terms)


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 60])
def test_few_states_are_held_at_once(length: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """About twice the root of the steps; every state comes, last first."""
    training = Training(mlp, sgd(), steps=length, checkpoints=[0])
    rerun = rerun_of(training, tmp_path / "run")
    monkeypatch.setattr(walk, "_HELD_BYTES", 1)
    with rerun.entered():
        (stretch,) = walk.backwards(rerun)
        frame = stretch.states.gi_frame  # type: ignore[attr-defined]
        steps, most = [], 0
        for state in stretch.states:
            steps.append(state.step)
            most = max(most, len(frame.f_locals["kept"]) + len(frame.f_locals["block"]) + 1)
    assert steps == list(range(length))[::-1]
    assert most <= 2 * length**0.5 + 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_walks_killed_at_random_moments_resume_to_the_same_bytes(tmp_path: Path) -> None:
    """Those of Replay, and of both ways in which Unrolled carries its adjoint."""
    script = Path(killed_build.__file__)
    paths = [str(Path(diffin.__file__).parents[1]), str(script.parents[1])]
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), "4", "1"],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for kind, history in json.loads(done.stdout).items():
        assert len({json.dumps(now) for now in history}) >= 3, f"the kills came too early or too late: {history}"
        if kind != "replay":  # A file for each state: what was finished is not written again.
            for before, after in pairwise(history):
                assert before.items() <= after.items()
        whole, killed = (
            {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
            for folder in (tmp_path / kind / "whole", tmp_path / kind / "killed")
        )
        assert whole.keys() == killed.keys()
        assert not [name for name, content in whole.items() if killed[name] != content]


@pytest.fixture
def small(tmp_path: Path) -> tuple[Training, Classification, diffin.Trajectory]:
    training = Training(mlp, sgd(momentum=0.9))
    return training, *training.recorded(tmp_path / "run")


def test_scores_are_saved_and_opened_and_not_computed_twice(small, tmp_path, monkeypatch) -> None:
    training, task, trajectory = small
    options = {"query": training.query, "estimator": diffin.Replay(), "progress": False, "output": tmp_path / "scores"}
    scores = diffin.score(task, trajectory, training.train, **options)
    opened = Scores.open(tmp_path / "scores")
    found = diffin.Replay().walk(
        Rerun(task, trajectory, open_source(training.train)), [set_of(training.query)], progress=False
    )
    np.testing.assert_allclose(scores.influence, found.influence[0], rtol=1e-10)
    np.testing.assert_array_equal(opened.terms, found.terms[0])
    assert opened.steps == (0, 8)
    assert np.isnan(opened.standard_error).all()
    assert opened.stability.reliability is None
    assert "pass several recordings" in opened.stability.sentence()
    assert opened.metadata["derivatives"] == {"name": "replay"}
    monkeypatch.setattr(diffin.Replay, "walk", None)
    again = diffin.score(task, trajectory, training.train, **options)
    np.testing.assert_array_equal(again.influence, scores.influence)
    with pytest.raises(ScoringError, match="another run, query or data"):
        diffin.score(task, trajectory, training.train, **(options | {"query": training.train}))


def test_resume_false_walks_again(small, tmp_path, monkeypatch) -> None:
    """Whatever an earlier walk has left; nothing of it is taken for the new one."""
    training, task, trajectory = small
    options = {"query": training.query, "estimator": diffin.Replay(), "progress": False, "output": tmp_path / "scores"}
    diffin.score(task, trajectory, training.train, **options)
    pulled = []
    plain = Rerun.pull_back
    monkeypatch.setattr(Rerun, "pull_back", lambda *args, **options: pulled.append(1) or plain(*args, **options))
    diffin.score(task, trajectory, training.train, resume=False, **options)
    assert len(pulled) == 20


def test_what_cannot_be_asked_is_refused(small) -> None:
    training, task, trajectory = small
    with pytest.raises(DiffinError, match="parameters="):
        diffin.score(
            task, trajectory, training.train, query=training.query, estimator=diffin.Replay(), parameters="0.*"
        )
    with pytest.raises(DatasetError, match="query=None"):
        diffin.score(task, trajectory, training.train, estimator=diffin.Replay())


class Bent(nn.Module):
    """Has a derivative at 0, but not a second one."""

    def forward(self, x: Tensor) -> Tensor:
        return x.abs().pow(1.5)


def test_an_infinite_derivative_is_refused(tmp_path: Path) -> None:
    training = Training(lambda: nn.Sequential(nn.Linear(5, 3, bias=False), Bent()), sgd(lr=0.01))
    training.train.tensors[0][5] = 0
    with pytest.raises(DerivativeError, match="derivative of the training is not finite"):
        replayed(training, tmp_path / "run")
    broken = TensorDataset(training.query.tensors[0] * torch.nan, training.query.tensors[1])
    with pytest.raises(DerivativeError, match="not finite"):
        replayed(Training(mlp, sgd()), tmp_path / "other", set_of(broken))


def test_a_wrong_label_harms(tmp_path: Path) -> None:
    """The sign, on a problem that is separable but for that label."""
    training = Training(lambda: nn.Linear(5, 3), sgd(), steps=40)
    for data in (training.train, training.query):
        x, y = data.tensors
        y[:] = x[:, :3].argmax(dim=1)
    x, y = training.train.tensors
    wrong = int((x[:, :3].sort(dim=1).values[:, -1] - x[:, :3].sort(dim=1).values[:, -2]).argmax())
    y[wrong] = x[wrong, :3].argmin()
    influence = replayed(training, tmp_path / "run").influence[0]
    assert influence.argmax() == wrong
    assert influence[wrong] > 0
    assert (influence < 0).mean() > 0.5
