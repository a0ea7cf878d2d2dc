"""What all three actions refuse before they begin."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import Subset, TensorDataset

import diffin
from diffin.errors import DatasetError, DiffinError
from diffin.tasks import Classification
from training import record

ACTIONS: dict[str, Callable[..., Any]] = {
    "clean": lambda task, trajectory, data: diffin.clean(task, trajectory, data, progress=False),
    "delete": lambda task, trajectory, data: diffin.delete(task, trajectory, data, [1], progress=False),
    "select": lambda task, trajectory, data: diffin.select(
        task, data, trajectory=trajectory, method="el2n", fractions=0.2, progress=False
    ),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Classification, diffin.Trajectory, TensorDataset]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (60,), generator=generator)
    data = TensorDataset(torch.randn(60, 4, generator=generator) + 3 * torch.eye(3, 4)[labels], labels)
    torch.manual_seed(0)
    task = Classification(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)))
    folder: Path = tmp_path_factory.mktemp("checks") / "run"
    record(folder, task, data, steps=30, batch_size=10, learning_rate=0.1)
    return task, diffin.Trajectory.open(folder), data


@pytest.mark.parametrize("name", ACTIONS)
def test_a_training_set_of_another_size_is_refused(name: str, run: Any) -> None:
    task, trajectory, data = run
    with pytest.raises(DatasetError, match="recorded on 60 samples and the training set holds 40"):
        ACTIONS[name](task, trajectory, Subset(data, range(40)))


@pytest.mark.parametrize("name", ACTIONS)
def test_something_else_than_a_task_or_a_trajectory_is_refused(name: str, run: Any) -> None:
    task, trajectory, data = run
    with pytest.raises(DiffinError, match=r"Classification"):
        ACTIONS[name](task.model, trajectory, data)
    with pytest.raises(DiffinError, match=r"Trajectory.open"):
        ACTIONS[name](task, "runs/a", data)


def test_arguments_of_select_that_make_no_sense(run: Any) -> None:
    task, trajectory, data = run
    for wrong, words in (
        ({"fractions": ["a third"]}, "no number"),
        ({"seed": -1}, "seed=-1"),
        ({"settings": 3}, "settings=3"),
    ):
        asked: dict[str, Any] = {"fractions": 0.2, "method": "el2n", "trajectory": trajectory, "progress": False}
        with pytest.raises(DiffinError, match=words):
            diffin.select(task, data, **{**asked, **wrong})
