"""An attribution says of every pair what a scoring with that query alone says, in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pairs_of import Asked, attributed, one_by_one, pairs
from torch.optim import SGD, AdamW
from torch.utils.data import TensorDataset

import diffin
from diffin.attribution import directions
from repeatable import adam, two_groups
from retrained import Training, cnn, mlp, sgd

QUERIES = 4


def asked(training: Training, path: Path) -> Asked:
    return *training.recorded(path), training.train, TensorDataset(*(t[:QUERIES] for t in training.query.tensors))


TRAININGS: dict[str, Callable[[], Training]] = {
    "momentum": lambda: Training(mlp, sgd(momentum=0.9, weight_decay=0.05)),
    "two groups, clipped": lambda: Training(
        mlp, two_groups(SGD, {"lr": 0.3}, {"lr": 0.05, "weight_decay": 0.2}, momentum=0.7), clip=0.3
    ),
    "adamw": lambda: Training(mlp, adam(AdamW, weight_decay=0.3)),
    "batch norm": lambda: Training(cnn, sgd(momentum=0.9), shape=(1, 6, 6)),
}

ESTIMATORS: dict[str, tuple[Any, float]] = {
    "tracin": (diffin.TracIn(), 1e-12),
    # The mixed derivative is a difference of gradients.
    "diffin": (diffin.DiffIn(batch_size=8, batches=2), 1e-7),
    "diffin, differences": (diffin.DiffIn(batch_size=8, hessian="difference"), 1e-6),
    # What conjugate gradients leave, in as many steps as suffice and with a damping that makes the matrix definite.
    "cg": (diffin.InverseHessian(damping=2.0, tolerance=1e-10), 1e-8),
    "lissa": (diffin.InverseHessian(solver="lissa", damping=2.0, iterations=10, samples=6), 1e-10),
    "steps": (diffin.Unrolled(propagation="steps", states=4, hessian="exact"), 1e-10),
    # Full rank: Lanczos from one query and from all of them end at the same.
    "segments": (diffin.Unrolled(propagation="segments", rank=150, curvature_samples=None, hessian="exact"), 1e-5),
    "replay": (diffin.Replay(), 1e-12),
}


# Every estimator where training matters little to it, and where it does, those that follow it.
PAIRS = [
    *((name, "momentum") for name in ESTIMATORS),
    *((name, "adamw") for name in ("tracin", "diffin", "cg", "steps", "segments", "replay")),
    *((name, "two groups, clipped") for name in ("tracin", "diffin", "steps", "segments", "replay")),
    *((name, "batch norm") for name in ("tracin", "diffin", "steps", "replay")),
]


@pytest.mark.parametrize(("name", "training"), PAIRS)
def test_every_pair_is_a_scoring_with_that_query_alone(name: str, training: str, tmp_path: Path) -> None:
    estimator, tolerance = ESTIMATORS[name]
    of = asked(TRAININGS[training](), tmp_path / "run")
    wanted = one_by_one(of, estimator)
    found = pairs(of, estimator)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


def test_steps_by_differences_are_those_of_single_queries(tmp_path: Path) -> None:
    estimator = diffin.Unrolled(propagation="steps", states=4, hessian="difference")
    of = asked(TRAININGS["momentum"](), tmp_path / "run")
    wanted = one_by_one(of, estimator)
    np.testing.assert_allclose(pairs(of, estimator), wanted, rtol=0, atol=1e-10 * np.abs(wanted).max())


@pytest.mark.parametrize("name", ["tracin", "diffin", "steps", "segments", "replay"])
def test_a_group_is_asked_about_by_its_mean_loss(name: str, tmp_path: Path) -> None:
    estimator, tolerance = ESTIMATORS[name]
    of = asked(TRAININGS["momentum"](), tmp_path / "run")
    groups = [7, 2, 7, 2]
    found = attributed(of, estimator, groups=groups, top=100)
    assert found.queries.tolist() == [2, 7]
    assert found.grouped
    wanted = one_by_one(of, estimator, members=[[1, 3], [0, 2]])
    np.testing.assert_allclose(
        pairs(of, estimator, groups=groups), wanted, rtol=0, atol=tolerance * np.abs(wanted).max()
    )


@pytest.mark.parametrize("name", ["tracin", "diffin", "cg", "steps", "segments"])
def test_blocks_of_queries_change_nothing_but_rounding(name: str, tmp_path: Path, monkeypatch) -> None:
    estimator, tolerance = ESTIMATORS[name]
    of = asked(TRAININGS["momentum"](), tmp_path / "run")
    wanted = pairs(of, estimator)
    parameters = sum(p.numel() for p in of[0].model.parameters())
    monkeypatch.setattr(directions, "_BLOCK_BYTES", 2 * 8 * parameters)
    found = pairs(of, estimator, output=tmp_path / "out")
    assert sorted(folder.name for folder in (tmp_path / "out" / "directions").iterdir()) == ["00000", "00001"]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


@pytest.mark.parametrize("name", ["tracin", "diffin", "steps", "segments"])
def test_some_of_the_parameters_are_studied(name: str, tmp_path: Path) -> None:
    estimator, tolerance = ESTIMATORS[name]
    of = asked(TRAININGS["two groups, clipped"](), tmp_path / "run")
    wanted = one_by_one(of, estimator, parameters="2.*")
    found = pairs(of, estimator, parameters="2.*")
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


def test_without_an_estimator_it_is_that_of_a_scoring(tmp_path: Path) -> None:
    of = asked(TRAININGS["momentum"](), tmp_path / "run")
    wanted = one_by_one(of, None)
    np.testing.assert_allclose(pairs(of, None), wanted, rtol=0, atol=1e-9 * np.abs(wanted).max())
