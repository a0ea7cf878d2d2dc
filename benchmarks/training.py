"""The run that the benchmarks study: a CNN on part of Fashion-MNIST, recorded by diffin."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import diffin
from data import FashionMNIST, dataset
from diffin.sources import open_source
from diffin.task import frozen
from diffin.tasks import Classification
from networks import cnn


@dataclass(frozen=True)
class Setting:
    """Sizes of the benchmark."""

    samples: int = 10_000
    query_samples: int = 1_000
    checkpoints: int = 5
    epochs: int = 5
    batch_size: int = 128
    learning_rate: float = 0.1
    seed: int = 0


@dataclass(frozen=True)
class Run:
    """A recorded training.

    Attributes:
        model: as training left it.
        trajectory: what was recorded.
        train: the samples it was trained on.
        query: clean samples of the test part.
        accuracy: on the query.
        step_seconds: median time of a training step, recording left out.
    """

    model: nn.Module
    trajectory: diffin.Trajectory
    train: TensorDataset
    query: TensorDataset
    accuracy: float
    step_seconds: float


def record(data: FashionMNIST, kind: str, setting: Setting, folder: Path) -> Run:
    """Train a network and record it: plain SGD, cosine learning rate."""
    torch.manual_seed(setting.seed)
    train = dataset(data.train_images[: setting.samples], data.train_labels[: setting.samples])
    query = dataset(data.test_images[: setting.query_samples], data.test_labels[: setting.query_samples])
    model = cnn(kind)
    steps = setting.epochs * -(-setting.samples // setting.batch_size)
    optimizer = torch.optim.SGD(model.parameters(), lr=setting.learning_rate)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    seconds = []
    with diffin.Recorder(
        folder,
        model,
        optimizer,
        dataset_size=setting.samples,
        total_steps=steps,
        checkpoints=setting.checkpoints,
    ) as recorder:
        for inputs, targets, indices in _batches(train, setting):
            start = time.perf_counter()
            F.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
            seconds.append(time.perf_counter() - start)
            recorder.step(indices)
            scheduler.step()
            optimizer.zero_grad()
    with torch.no_grad():
        inputs, targets = query.tensors
        accuracy = float((model.eval()(inputs).argmax(1) == targets).double().mean())
    median = sorted(seconds)[len(seconds) // 2]
    return Run(model, diffin.Trajectory.open(folder), train, query, accuracy, median)


def _batches(train: TensorDataset, setting: Setting) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    inputs, targets = train.tensors
    generator = torch.Generator().manual_seed(setting.seed)
    for _ in range(setting.epochs):
        for indices in torch.randperm(len(train), generator=generator).split(setting.batch_size):
            yield inputs[indices], targets[indices], indices


def infer(run: Run, batch_size: int) -> None:
    """Per-sample losses at every checkpoint, the data read once."""
    task = Classification(run.model)
    with frozen(run.model), torch.inference_mode():
        batches = [batch for _, batch in open_source(run.train).batches(batch_size)]
        for checkpoint in run.trajectory.checkpoints:
            run.model.load_state_dict(checkpoint.state)
            for batch in batches:
                task.losses(batch)
