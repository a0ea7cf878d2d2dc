"""The whole matrix of influences, two ways: from an attribution that keeps everything, and one query after another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.utils.data import Subset, TensorDataset

import diffin
from diffin.attribution import Attribution, attribute
from diffin.task import Task

Asked = tuple[Task, diffin.Trajectory, TensorDataset, TensorDataset]
"""Task, trajectory, training set and queries."""


def whole(found: Attribution) -> np.ndarray:
    """Float64[ndarray, "N Q"] of an attribution whose `top` left nothing out; NaN for failed samples."""
    matrix = np.full((found.samples, len(found)), np.nan)
    np.put_along_axis(matrix, found.proponents.T, found.proponent_influence.T, axis=0)
    other = np.full_like(matrix, np.nan)
    np.put_along_axis(other, found.opponents.T, found.opponent_influence.T, axis=0)
    np.testing.assert_array_equal(matrix, other)
    return matrix


def pairs(asked: Asked, estimator: Any, **options: Any) -> np.ndarray:
    return whole(attributed(asked, estimator, **{"top": 10_000, **options}))


def attributed(asked: Asked, estimator: Any, **options: Any) -> Attribution:
    task, trajectory, train, query = asked
    return attribute(task, trajectory, train, query, estimator=estimator, **{"progress": False, **options})


def one_by_one(
    asked: Asked, estimator: Any, members: Sequence[Sequence[int]] | None = None, **options: Any
) -> np.ndarray:
    """Float64[ndarray, "N Q"], a scoring for every query, each a few samples of the query set."""
    task, trajectory, train, query = asked
    members = [[number] for number in range(len(query))] if members is None else members
    settings = {"estimator": estimator, "derivatives": "forward", "progress": False, **options}
    columns = [
        diffin.score(task, trajectory, train, query=Subset(query, list(chosen)), **settings).influence
        for chosen in members
    ]
    return np.stack(columns, axis=1)
