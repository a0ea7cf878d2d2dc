"""A pool of two classes, a fifth of them labelled wrongly, and a short recorded training on any part of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset

import diffin
from diffin.sources import Indices
from diffin.tasks import Classification

SIZE, STEPS, BATCH = 120, 16, 8


def pool(seed: int = 0, wrong: float = 0.2) -> tuple[TensorDataset, TensorDataset, np.ndarray]:
    """Training set, query, and which labels of the training set are wrong."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(SIZE + 60, 4, generator=generator, dtype=torch.float64)
    labels = (inputs[:, 0] + 0.5 * inputs[:, 1] > 0.2).long()
    flipped = torch.rand(SIZE + 60, generator=generator) < wrong
    flipped[SIZE:] = False
    given = torch.where(flipped, 1 - labels, labels)
    train = TensorDataset(inputs[:SIZE], given[:SIZE])
    return train, TensorDataset(inputs[SIZE:], given[SIZE:]), flipped[:SIZE].numpy()


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).double()


def task() -> Classification:
    return Classification(network(0))


class Fit:
    """Trains a new model, and counts how often it did."""

    def __init__(self, train: TensorDataset, steps: int = STEPS) -> None:
        self.train, self.steps, self.calls = train, steps, 0

    def __call__(self, indices: Indices, folder: Path, seed: int) -> None:
        self.calls += 1
        model = network(seed)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.5)
        generator = np.random.default_rng(seed)
        with diffin.Recorder(
            folder, model, optimizer, dataset_size=len(self.train), total_steps=self.steps, checkpoints=3
        ) as recorder:
            for _ in range(self.steps):
                batch = torch.from_numpy(generator.choice(indices, min(BATCH, len(indices)), replace=False))
                inputs, labels = self.train[batch]
                nn.functional.cross_entropy(model(inputs), labels).backward()
                optimizer.step()
                recorder.step(batch)
                optimizer.zero_grad()
