"""A training loop of one's own, recorded, and the problem file of everything that the command line does.

python examples/digits.py
diffin diagnose examples/digits.py runs/digits
diffin score examples/digits.py runs/digits -o scores/digits
diffin clean examples/digits.py runs/digits -o suspects/digits
diffin delete examples/digits.py runs/digits --samples 0-13 -o deleted/digits --retrain
diffin select examples/digits.py -o kept/digits --fractions 0.1
"""

from __future__ import annotations

from itertools import chain, islice, repeat
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

import diffin
from diffin.tasks import Classification

BATCH, STEPS = 32, 880


def datasets() -> tuple[TensorDataset, TensorDataset]:
    """1,400 digits of 8 x 8 to train on, and 397 whose mean loss is asked about."""
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    inputs, targets = torch.from_numpy(images / 16).float()[order], torch.from_numpy(labels)[order]
    return TensorDataset(inputs[:1400], targets[:1400]), TensorDataset(inputs[1400:], targets[1400:])


def build_model() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 10))


def fit(indices: np.ndarray, folder: str | Path, seed: int) -> None:
    """Train a new model on those samples, and record it: 880 steps, however many samples there are."""
    torch.manual_seed(seed)
    train, _ = datasets()
    model = build_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    loader = DataLoader(Subset(diffin.Indexed(train), indices.tolist()), batch_size=BATCH, shuffle=True)
    with diffin.Recorder(
        folder, model, optimizer, dataset_size=len(train), total_steps=STEPS, checkpoints=20
    ) as recorder:
        for inputs, targets, samples in islice(chain.from_iterable(repeat(loader)), STEPS):
            F.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
            recorder.step(samples)
            scheduler.step()
            optimizer.zero_grad()


def problem() -> diffin.Problem:
    train, query = datasets()
    return diffin.Problem(
        task=Classification(build_model()),
        train=train,
        query=query,
        show=lambda item: item[0].reshape(8, 8),  # what the page shows of a sample
        fit=fit,  # how to train on a part of the samples, for `diffin select`
    )


def main() -> None:
    train, _ = datasets()
    fit(np.arange(len(train)), "runs/digits", seed=0)
    print("recorded", diffin.Trajectory.open("runs/digits"))


if __name__ == "__main__":
    main()
