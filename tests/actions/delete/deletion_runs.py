"""Small recorded trainings to delete from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

import diffin
from diffin.tasks import Classification


def clusters(count: int, seed: int, dtype: torch.dtype = torch.float64) -> TensorDataset:
    """Three classes of points in six dimensions that overlap."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    centres = torch.randn(3, 6, generator=torch.Generator().manual_seed(7))
    points = centres[labels] + 1.2 * torch.randn(count, 6, generator=generator)
    return TensorDataset(points.to(dtype), labels)


def network(hidden: int | None = 12, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A small MLP, or a linear model."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Linear(6, 3)] if hidden is None else [nn.Linear(6, hidden), nn.GELU(), nn.Linear(hidden, 3)]
        return nn.Sequential(*layers).to(dtype)


def trained(
    folder: Path,
    dataset: TensorDataset,
    model: nn.Module,
    *,
    steps: int = 240,
    batch_size: int = 20,
    kind: Any = torch.optim.SGD,
    checkpoints: int = 10,
    **constants: Any,
) -> tuple[Classification, diffin.Trajectory]:
    """Train with a cosine schedule, and record."""
    optimizer = kind(model.parameters(), **(constants or {"lr": 0.1}))
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(0)
    inputs, labels = dataset.tensors
    with diffin.Recorder(
        folder, model, optimizer, dataset_size=len(dataset), total_steps=steps, checkpoints=checkpoints
    ) as recorder:
        taken = 0
        while taken < steps:
            for indices in torch.randperm(len(dataset), generator=generator).split(batch_size)[: steps - taken]:
                F.cross_entropy(model(inputs[indices]), labels[indices]).backward()
                optimizer.step()
                recorder.step(indices)
                scheduler.step()
                optimizer.zero_grad()
                taken += 1
    return Classification(model), diffin.Trajectory.open(folder)
