"""What is said of a training whose exact derivative explodes, against products of dense Hessians."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import diffin
from cases import Dense
from diffin.estimators import stepwise
from diffin.estimators.growth import MOST
from diffin.task import PerSampleLoss, frozen
from retrained import Training, mlp, sgd

STEPS, STATES = 40, 5


def erratic(learning_rate: float = 2.5, checkpoints: Sequence[int] = (0, 20)) -> Training:
    """Long constant steps of SGD."""
    return Training(mlp, sgd(lr=learning_rate), steps=STEPS, checkpoints=checkpoints)


def growths(training: Training, task: diffin.Task, trajectory: diffin.Trajectory) -> list[float]:
    """Of the adjoint before every step, over that at the end."""
    assert trajectory.final is not None
    with frozen(task.model):
        adjoint = Dense(PerSampleLoss(task, trajectory.final.state)).gradient(training.query.tensors)
        end, sizes = adjoint.norm(), torch.zeros(STEPS)
        for checkpoint in reversed(trajectory.checkpoints):
            dense = Dense(PerSampleLoss(task, checkpoint.state))
            hessian = dense.hessian(training.train[training.batches[checkpoint.step]])
            adjoint = adjoint - checkpoint.learning_rate * hessian @ adjoint
            sizes[checkpoint.step] = adjoint.norm() / end
    return sizes.tolist()


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[Any]:
    return [record.args for record in caplog.records if record.name == "diffin.estimators.growth"]


def built(training: Training, task: Any, trajectory: Any, **options: Any) -> diffin.ProbeSet:
    estimator = diffin.Unrolled(propagation="steps", states=STATES, hessian=options.pop("hessian", "exact"))
    return diffin.build_probes(
        task, trajectory, training.train, query=training.query, estimator=estimator, progress=False, **options
    )


def test_an_adjoint_that_explodes_is_told_once_and_gauss_newton_is_steady(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    training = erratic(checkpoints=range(STEPS))
    task, trajectory = training.recorded(tmp_path / "run")
    chosen = stepwise.states(STATES, STEPS)
    starts = [start for start, _ in stepwise.nearest(chosen, STEPS)]
    grown = growths(training, task, trajectory)
    first = max(start for start in starts if grown[start] > MOST)
    assert first > 0, "the growth goes on after it, and is not told again"
    for hessian in ("exact", "difference"):
        caplog.clear()
        built(training, task, trajectory, hessian=hessian)
        ((step, factor, advice),) = warnings_of(caplog)
        assert step == first
        assert factor == pytest.approx(grown[first], rel=1e-6 if hessian == "exact" else 0.01)
        assert "hessian='gauss-newton'" in advice
        assert "grew" in caplog.text
    caplog.clear()
    built(training, task, trajectory, hessian="gauss-newton")
    assert not warnings_of(caplog)


def test_gauss_newton_is_not_advised_where_it_explodes_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    training = erratic(10.0)
    built(training, *training.recorded(tmp_path / "run"), hessian="gauss-newton")
    ((_, _, advice),) = warnings_of(caplog)
    assert "gauss-newton" not in advice
    assert "segments" in advice


def test_calm_trainings_and_segments_of_erratic_ones_are_not_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    calm, wild = erratic(0.2), erratic(10.0)
    built(calm, *calm.recorded(tmp_path / "calm"))
    task, trajectory = wild.recorded(tmp_path / "wild")
    estimator = diffin.Unrolled(propagation="segments", hessian="exact")
    diffin.build_probes(task, trajectory, wild.train, query=wild.query, estimator=estimator, progress=False)
    assert not warnings_of(caplog)


def test_an_interrupted_build_remembers_how_large_the_adjoint_was_at_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = erratic()
    task, trajectory = training.recorded(tmp_path / "run")
    whole = built(training, task, trajectory)
    caplog.clear()
    write = diffin.probes.ProbeWriter.write

    def killed_after_one(self: Any, checkpoint: Any, carried: Any = None) -> None:
        write(self, checkpoint, carried)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(diffin.probes.ProbeWriter, "write", killed_after_one)
        with pytest.raises(KeyboardInterrupt):
            built(training, task, trajectory, output=tmp_path / "probes")
    assert not warnings_of(caplog)
    assert built(training, task, trajectory, output=tmp_path / "probes").digest == whole.digest
    assert len(warnings_of(caplog)) == 1
