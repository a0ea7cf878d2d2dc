"""Trainings followed forwards by segments, against the same segments backwards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dual import SAMPLES, assert_dual, both, small
from torch.optim import AdamW

import diffin
from diffin.estimators.response import StepResponse, move, respond
from diffin.parameters import parameter_influence
from repeatable import adam, two_groups
from retrained import PartlyUnused, Training, sgd

SEGMENTS = diffin.Unrolled(propagation="segments", rank=500, curvature_samples=None, hessian="exact")


SEGMENTED: dict[str, Any] = {
    "nesterov": lambda: Training(small, sgd(momentum=0.9, nesterov=True)),
    "dampening": lambda: Training(small, sgd(momentum=0.8, dampening=0.4, lr=0.4)),
    "clipped with decay": lambda: Training(small, sgd(momentum=0.9, weight_decay=0.2), clip=0.2),
    "two groups": lambda: Training(
        small, two_groups(torch.optim.SGD, {"lr": 0.3, "weight_decay": 0.02}, {"lr": 0.05, "weight_decay": 0.2}, momentum=0.7)
    ),
    "a group that rests": lambda: Training(small, two_groups(torch.optim.SGD, {"lr": 0.3}, {"lr": 0.1}), schedule=resting),
    "so fast that the guard has to cut": lambda: Training(small, sgd(momentum=0.5, lr=6.0), clip=1.0),
    "adam with decay": lambda: Training(small, adam(weight_decay=0.1, eps=1e-3), clip=0.2),
    "adamw": lambda: Training(small, adam(AdamW, weight_decay=0.4)),
    "two groups of adamw": lambda: Training(
        small, two_groups(AdamW, {"lr": 0.03, "weight_decay": 0.5}, {"lr": 0.01, "weight_decay": 0.1, "eps": 1e-4})
    ),
    "unused parameters of adamw": lambda: Training(PartlyUnused, adam(AdamW)),
}  # fmt: skip


def resting(optimizer: torch.optim.Optimizer, step: int) -> None:
    """One of the groups does not move in the middle of the training."""
    optimizer.param_groups[0]["lr"] = 0.0 if 4 <= step < 12 else 0.1


@pytest.mark.parametrize("name", SEGMENTED)
def test_segments_of_full_rank_are_the_same_in_both_directions(name: str, tmp_path: Path) -> None:
    training = SEGMENTED[name]()
    training.checkpoints = [0, 5, 12]
    # Lanczos breaks off where what is left of the curvature is a millionth of it.
    assert_dual(*both(training, tmp_path / "run", SEGMENTS), 2e-6)


@pytest.mark.parametrize("name", ["nesterov", "clipped with decay", "adamw"])
def test_segments_by_differences_are_those_by_products(name: str, tmp_path: Path) -> None:
    estimator = replace(SEGMENTS, hessian="difference", rank=40)
    assert_dual(*both(SEGMENTED[name](), tmp_path / "run", estimator, asked=SEGMENTS), 1e-5)


def test_segments_study_chosen_parameters_with_their_own_curvature(tmp_path: Path) -> None:
    assert_dual(*both(SEGMENTED["nesterov"](), tmp_path / "run", SEGMENTS, parameters=["0.*", "2.bias"]), 2e-6)


def test_segments_are_near_with_a_low_rank(tmp_path: Path) -> None:
    training = Training(small, sgd(momentum=0.9), checkpoints=[0, 5, 12])
    errors = [
        abs(found - scores.influence[SAMPLES].sum())
        for found, scores in (
            both(training, tmp_path / f"{rank}", replace(SEGMENTS, rank=rank), asked=SEGMENTS) for rank in (1, 8)
        )
    ]
    assert errors[1] < errors[0] / 10


def test_foreign_checkpoints_are_followed_as_plain_sgd(tmp_path: Path) -> None:
    training = SEGMENTED["nesterov"]()
    task, recorded = training.recorded(tmp_path / "run")
    paths = []
    for checkpoint in recorded.stored:
        paths.append(tmp_path / f"{checkpoint.step}.pt")
        torch.save(checkpoint.state, paths[-1])
    foreign = diffin.Trajectory.from_checkpoints(paths, [2, 9, 20], [0.3, 0.2, 0.1], dataset_size=24)
    found = parameter_influence(task, foreign, training.train, SAMPLES, estimator=SEGMENTS, progress=False)
    scores = diffin.score(
        task, foreign, training.train, query=training.query, estimator=SEGMENTS, derivatives="forward", progress=False
    )
    assert_dual(found.on(task, training.query), scores, 2e-6)


@pytest.mark.parametrize("decayed", [False, True], ids=["plain", "with decay"])
def test_moving_is_the_transpose_of_responding(decayed: bool) -> None:
    """< adjoint at the end, where it leads > is < adjoint at the start, from where > and the direction times the push."""
    generator = np.random.default_rng(0)
    steps = [
        StepResponse(rate=r, decayed=0.1 * r, clip=c, beta=0.8, kappa=0.6, gradient=a, buffer=b)
        for r, c, a, b in generator.uniform(0.1, 1.0, size=(7, 4))
    ]
    x, y, push, ahead, held = generator.normal(size=(5, 4))
    values = np.array([-3.0, 0.2, 0.9, 50.0])
    matrices = [m + m.T for m in generator.normal(size=(2, 4, 4))] if decayed else [None, None]
    moved = move(steps, values, x, y, push, *matrices)
    found = respond(steps, values, ahead, held, *matrices)
    wanted = found.parameters @ x + found.buffer @ y + found.direction @ push
    assert ahead @ moved.parameters + held @ moved.buffer == pytest.approx(wanted, rel=1e-12)
