"""Estimators that know one state at a time: their change of the parameters against their scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from dual import SAMPLES, assert_dual, both, small

import diffin
from diffin import vectors
from diffin.derivatives.gradient import mean_gradient
from diffin.parameters import parameter_influence
from diffin.task import PerSampleLoss, frozen
from repeatable import set_of, two_groups
from retrained import Training, cnn, sgd


@pytest.mark.parametrize("of_batches", [False, True], ids=["plain", "with batch norm"])
def test_the_inverse_hessian_is_symmetric(of_batches: bool, tmp_path: Path) -> None:
    training = Training(cnn, sgd(), shape=(1, 6, 6)) if of_batches else Training(small, sgd(weight_decay=0.1))
    estimator = diffin.InverseHessian(damping=30.0 if of_batches else 1.0, tolerance=1e-12, iterations=500)
    assert_dual(*both(training, tmp_path / "run", estimator), 1e-9)


@pytest.mark.parametrize(
    "estimator",
    [diffin.TracIn(), diffin.DiffIn(batch_size=10, batches=2, seed=1), diffin.DiffIn(batch_size=None)],
    ids=str,
)
@pytest.mark.parametrize(
    "optimizer", [sgd(), two_groups(torch.optim.SGD, {"lr": 0.3}, {"lr": 0.05})], ids=["one", "two"]
)
def test_local_estimators_are_dual_at_every_checkpoint(estimator: Any, optimizer: Any, tmp_path: Path) -> None:
    """Their scores take the gradient of the query where they measure, so that each has to be asked for itself."""
    training = Training(small, optimizer, checkpoints=[0, 8, 13])
    task, trajectory = training.recorded(tmp_path / "run")
    scores = diffin.score(
        task,
        trajectory,
        training.train,
        query=training.query,
        estimator=estimator,
        derivatives="forward",
        progress=False,
    )
    whole = parameter_influence(task, trajectory, training.train, SAMPLES, estimator=estimator, progress=False)
    total = vectors.zeros_like(whole.vector)
    for number, checkpoint in enumerate(trajectory.checkpoints):
        alone = only(trajectory, number)
        # The weight of one checkpoint among three is a third of its weight alone.
        found = (
            parameter_influence(task, alone, training.train, SAMPLES, estimator=estimator, progress=False)
            if checkpoint.step or not isinstance(estimator, diffin.DiffIn)
            else None
        )
        if found is None:
            continue
        term = vectors.scale(found.vector, 1 / 3)
        total = vectors.add(total, term)
        with frozen(task.model):
            gradient = mean_gradient(PerSampleLoss(task, checkpoint.state), set_of(training.query)).gradient
        wanted = scores.terms.reshape(24, 3, -1).sum(axis=2)[SAMPLES, number].sum()
        assert vectors.dot(term, gradient) == pytest.approx(wanted, rel=1e-9)
    assert vectors.norm(vectors.add(whole.vector, total, -1.0)) < 1e-12 * whole.norm


def only(trajectory: diffin.Trajectory, number: int) -> diffin.Trajectory:
    """The trajectory with one of its checkpoints."""
    assert trajectory.path is not None
    alone = diffin.Trajectory.open(trajectory.path)
    alone.checkpoints = (alone.checkpoints[number],)
    return alone
