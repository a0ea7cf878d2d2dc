"""Short, real, recorded trainings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.utils.data import TensorDataset

from diffin import Recorder, Trajectory
from diffin.task import Task


def record(
    path: Path,
    task: Task,
    dataset: TensorDataset,
    *,
    steps: int = 24,
    batch_size: int = 4,
    checkpoints: Any = 3,
    learning_rate: float = 0.05,
    optimizer: torch.optim.Optimizer | None = None,
) -> Trajectory:
    """Train the task's model for a few steps of SGD with a decaying rate, and open what was recorded."""
    optimizer = optimizer or torch.optim.SGD(task.model.parameters(), lr=learning_rate)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(0)
    size = len(dataset)
    with Recorder(
        path, task.model, optimizer, dataset_size=size, total_steps=steps, checkpoints=checkpoints
    ) as recorder:
        for _ in range(steps):
            indices = torch.randperm(size, generator=generator)[:batch_size]
            task.losses(dataset[indices]).mean().backward()
            optimizer.step()
            recorder.step(indices)
            scheduler.step()
            optimizer.zero_grad()
    return Trajectory.open(path)
