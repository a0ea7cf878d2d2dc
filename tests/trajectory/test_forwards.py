"""Dropout can be drawn again, whoever else draws from the same generator in between."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import diffin
from diffin.rerun import Rerun
from diffin.sources import open_source

SAMPLES = 40


def _train(folder: Path, model: nn.Module, loader: DataLoader, *, compiled: bool = False) -> diffin.Trajectory:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    recorded = torch.compile(model, backend="eager") if compiled else model
    with diffin.Recorder(folder, recorded, optimizer, dataset_size=SAMPLES, total_steps=12, checkpoints=2) as recorder:
        for _ in range(3):
            for inputs, targets, indices in loader:
                torch.autograd.backward(F.cross_entropy(recorded(inputs), targets))
                optimizer.step()
                recorder.step(indices)
                optimizer.zero_grad()
            model.eval()
            recorded(inputs)  # a validation pass is not a part of the training
            model.train()
    return diffin.Trajectory.open(folder)


@pytest.fixture
def data() -> TensorDataset:
    torch.manual_seed(0)
    return TensorDataset(torch.randn(SAMPLES, 6), torch.randint(3, (SAMPLES,)))


def _dropping() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.4), nn.Linear(8, 3))


def test_a_loader_that_shuffles_by_the_same_generator_is_no_obstacle(tmp_path: Path, data: TensorDataset) -> None:
    model = _dropping()
    trajectory = _train(tmp_path / "run", model, DataLoader(diffin.Indexed(data), batch_size=10, shuffle=True))
    assert trajectory.steps is not None
    noted = [step for step in range(12) if trajectory.steps.randomness(step) is not None]
    assert noted == [0, 4, 8]  # the first of each epoch, before which the loader drew
    Rerun(diffin.tasks.Classification(model), trajectory, open_source(data)).check_repeatable()


def test_nothing_is_noted_where_nothing_is_drawn(tmp_path: Path, data: TensorDataset) -> None:
    model = nn.Linear(6, 3)
    trajectory = _train(tmp_path / "run", model, DataLoader(diffin.Indexed(data), batch_size=10, shuffle=True))
    assert trajectory.steps is not None
    assert all(trajectory.steps.randomness(step) is None for step in range(12))


def test_draws_of_others_between_the_steps_are_no_obstacle(tmp_path: Path, data: TensorDataset) -> None:
    model = _dropping()

    def collate(items: list) -> list:
        torch.rand(3)
        return torch.utils.data.default_collate(items)

    noisy = DataLoader(diffin.Indexed(data), batch_size=10, collate_fn=collate)
    trajectory = _train(tmp_path / "run", model, noisy)
    assert trajectory.steps is not None
    assert all(trajectory.steps.randomness(step) is not None for step in range(12))
    Rerun(diffin.tasks.Classification(model), trajectory, open_source(data)).check_repeatable()


def test_a_compiled_model_is_not_hooked(tmp_path: Path, data: TensorDataset) -> None:
    model = _dropping()
    _train(tmp_path / "run", model, DataLoader(diffin.Indexed(data), batch_size=10), compiled=True)
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def test_the_hooks_go_with_the_recording(tmp_path: Path, data: TensorDataset) -> None:
    model = _dropping()
    _train(tmp_path / "run", model, DataLoader(diffin.Indexed(data), batch_size=10))
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
