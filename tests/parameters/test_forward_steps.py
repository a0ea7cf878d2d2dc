"""Trainings followed forwards, step by step: against walks backwards, and against training again with other weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from dual import SAMPLES, assert_dual, both, small
from torch import Tensor
from torch.optim import AdamW

import diffin
from diffin import vectors
from diffin.errors import DiffinError, TrajectoryError
from diffin.parameters import parameter_influence
from diffin.vectors import Vector
from repeatable import REPEATABLE, adam, full_batch, two_groups
from retrained import Training, cnn, sgd

STEPS = diffin.Unrolled(propagation="steps", states=4, hessian="exact")

MANY = [
    "dampening", "sgd that maximizes", "amsgrad", "groups of adamw", "changing adam", "clipped by the largest entry",
    "uneven micro-batches", "dropout in micro-batches", "batch norm that averages", "tied", "unused parameters",
]  # fmt: skip


def moved_by(training: Training, weights: Tensor) -> tuple[Vector, Vector]:
    """Parameters and running statistics after training with the weights."""
    model = training.run(weights)
    statistics = {name: t.clone() for name, t in model.named_buffers() if t.is_floating_point()}
    return {name: p.detach() for name, p in model.named_parameters()}, statistics


def derivative(training: Training, along: Tensor) -> list[Vector]:
    """By central differences of fourth order: they leave out h^4, and rounding adds 1e-16 / h."""
    h = 2e-4
    ends = [moved_by(training, 1 + k * h * along) for k in (1, -1, 2, -2)]
    found = []
    for one, minus_one, two, minus_two in zip(*ends, strict=True):
        inner, outer = vectors.add(one, minus_one, -1.0), vectors.add(two, minus_two, -1.0)
        found.append(vectors.scale(vectors.add(vectors.scale(inner, 8.0), outer, -1.0), 1 / (12 * h)))
    return found


def assert_near(found: Vector, wanted: Vector, tolerance: float) -> None:
    assert found.keys() == wanted.keys()
    assert vectors.norm(vectors.add(found, wanted, -1.0)) <= tolerance * vectors.norm(wanted)


@pytest.mark.parametrize("name", REPEATABLE)
def test_it_is_where_training_again_with_other_weights_leads(name: str, tmp_path: Path) -> None:
    training = REPEATABLE[name]()
    task, trajectory = training.recorded(tmp_path / "run")
    estimator = diffin.Replay(saturation=0.0)
    found = parameter_influence(task, trajectory, training.train, SAMPLES, estimator=estimator, progress=False)
    along = torch.zeros(training.size, dtype=torch.float64)
    along[SAMPLES] = 1.0
    parameters, statistics = derivative(training, along)
    assert_near(found.vector, parameters, 1e-8)
    # Buffers that never depend on a weight have a derivative too: zero.
    assert_near({name: found.buffers[name] for name in statistics}, statistics, 1e-8)


@pytest.mark.parametrize("name", ["momentum", "amsgrad", "adam with an input that is never active"])
def test_replay_forwards_is_replay_backwards(name: str, tmp_path: Path) -> None:
    assert_dual(*both(REPEATABLE[name](), tmp_path / "run", diffin.Replay()), 1e-10)


@pytest.mark.parametrize("name", MANY)
def test_steps_forwards_are_steps_backwards(name: str, tmp_path: Path) -> None:
    assert_dual(*both(REPEATABLE[name](), tmp_path / "run", STEPS), 1e-9)


@pytest.mark.parametrize("name", ["momentum", "adamw", "groups", "clipped", "dropout in micro-batches"])
def test_steps_by_differences_are_those_by_products(name: str, tmp_path: Path) -> None:
    found = both(REPEATABLE[name](), tmp_path / "run", replace(STEPS, hessian="difference"), asked=STEPS)
    assert_dual(*found, 1e-6)


def test_steps_of_chosen_parameters_are_those_that_the_samples_push(tmp_path: Path) -> None:
    assert_dual(*both(REPEATABLE["momentum"](), tmp_path / "run", STEPS, parameters="2.*"), 1e-9)


@pytest.mark.parametrize(
    "make",
    [
        sgd(), sgd(momentum=0.9, weight_decay=0.1), adam(AdamW),
        two_groups(torch.optim.Adam, {"lr": 0.02}, {"lr": 0.01, "weight_decay": 0.1}),
    ],
    ids=["sgd", "momentum", "adamw", "groups"],
)  # fmt: skip
@pytest.mark.parametrize("clip", [None, 0.1], ids=["plain", "clipped"])
def test_with_full_batches_and_all_states_steps_are_replay(make, clip: float | None, tmp_path: Path) -> None:
    """And both are what training again with other weights leads to, but for what saturation leaves out."""
    training = full_batch(Training(small, make, clip=clip))
    task, trajectory = training.recorded(tmp_path / "run")
    given = {"samples": SAMPLES, "progress": False}
    found, wanted = (
        parameter_influence(task, trajectory, training.train, estimator=estimator, **given)
        for estimator in (replace(STEPS, states=40), diffin.Replay())
    )
    assert_near(found.vector, wanted.vector, 1e-9)


def test_a_training_that_does_not_repeat_is_refused(tmp_path: Path) -> None:
    training = REPEATABLE["momentum"]()
    task, trajectory = training.recorded(tmp_path / "run")
    training.train.tensors[0].mul_(1.5)
    with pytest.raises(TrajectoryError, match="taken again, miss the recorded parameters"):
        parameter_influence(task, trajectory, training.train, SAMPLES, estimator=STEPS, progress=False)


def test_differences_do_not_see_statistics_and_say_so(tmp_path: Path) -> None:
    training = Training(cnn, sgd(), shape=(1, 6, 6))
    task, trajectory = training.recorded(tmp_path / "run")
    with pytest.raises(DiffinError, match="pass hessian='exact', or propagation='segments'"):
        parameter_influence(
            task, trajectory, training.train, SAMPLES, estimator=replace(STEPS, hessian="difference"), progress=False
        )
