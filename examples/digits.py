"""A training loop of one's own, recorded, and the problem file that the command line scores.

python examples/digits.py
diffin score examples/digits.py runs/digits -o scores/digits
diffin diagnose examples/digits.py runs/digits
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import diffin
from diffin.tasks import Classification

EPOCHS = 20


def datasets() -> tuple[TensorDataset, TensorDataset]:
    """1,400 digits of 8 x 8 to train on, and 397 whose mean loss is asked about."""
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    inputs, targets = torch.from_numpy(images / 16).float()[order], torch.from_numpy(labels)[order]
    return TensorDataset(inputs[:1400], targets[:1400]), TensorDataset(inputs[1400:], targets[1400:])


def build_model() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 10))


def problem() -> diffin.Problem:
    train, query = datasets()
    return diffin.Problem(
        task=Classification(build_model()),
        train=train,
        query=query,
        show=lambda item: item[0].reshape(8, 8),  # what the page shows of a sample
    )


def main() -> None:
    torch.manual_seed(0)
    train, _ = datasets()
    model = build_model()
    loader = DataLoader(diffin.Indexed(train), batch_size=32, shuffle=True)
    steps = EPOCHS * len(loader)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with diffin.Recorder(
        "runs/digits", model, optimizer, dataset_size=len(train), total_steps=steps, checkpoints=20
    ) as recorder:
        for _ in range(EPOCHS):
            for inputs, targets, indices in loader:
                F.cross_entropy(model(inputs), targets).backward()
                optimizer.step()
                recorder.step(indices)
                scheduler.step()
                optimizer.zero_grad()
    print("recorded", diffin.Trajectory.open("runs/digits"))


if __name__ == "__main__":
    main()
