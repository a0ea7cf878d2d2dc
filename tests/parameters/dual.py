"""The change of the parameters, asked about a query, has to be the sum of the influences of the samples on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

import diffin
from diffin.estimators import Estimator
from diffin.parameters import parameter_influence
from retrained import Training

SAMPLES = [3, 4, 11, 22]


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))


def both(
    training: Training, path: Path, estimator: Estimator, *, asked: Estimator | None = None, **options: Any
) -> tuple[float, diffin.Scores]:
    """What the vector says of the query, and the scores of all samples (by ``asked``, if that is another estimator)."""
    task, trajectory = training.recorded(path)
    given = {"estimator": estimator, "progress": False, **options}
    moved = parameter_influence(task, trajectory, training.train, SAMPLES, **given)
    given |= {"estimator": asked or estimator, "derivatives": "forward"}
    return moved.on(task, training.query), diffin.score(task, trajectory, training.train, query=training.query, **given)


def assert_dual(found: float, scores: diffin.Scores, tolerance: float) -> None:
    size = float(np.linalg.norm(scores.influence) * np.sqrt(len(SAMPLES)))
    assert found == pytest.approx(scores.influence[SAMPLES].sum(), rel=0, abs=tolerance * size)
