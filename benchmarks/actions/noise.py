"""Wrong labels, put into a data set on purpose: which samples have one is known, and every draw has its seed.

symmetric     another class, each equally likely
pair          the next class, as when one class is taken for one other
human         another class, as often as people took one class of CIFAR-10 for another (CIFAR-10N, counted in cifar10n.json)
duplicates    near copies of samples, with another label than theirs: the data contradict themselves

python benchmarks/actions/noise.py     # the human confusions, as probabilities
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Matrix = npt.NDArray[np.float64]

KINDS = (
    "clean",
    "symmetric-20",
    "symmetric-40",
    "pair-20",
    "pair-40",
    "human-aggregate",
    "human-worst",
    "duplicates-10",
)
"""What :func:`corrupt` knows by name; the number is a percentage."""

FASHION_ORDER = (3, 7, 5, 6, 4, 0, 8, 2, 1, 9)
"""The class of Fashion-MNIST that stands for each class of CIFAR-10, so that alike classes are confused: sneaker and ankle
boot as automobile and truck, shirt and T-shirt as cat and dog, coat and pullover as deer and horse, and so on."""

_COUNTS = Path(__file__).with_name("cifar10n.json")
_BLUR = 0.05
"""How far a near copy lies from its original, in standard deviations of the data."""


@dataclass(frozen=True)
class Corrupted:
    """A data set with wrong labels.

    Attributes:
        inputs: Tensor, "N ...", copies at the end.
        labels: Int64[Tensor, "N"], as given to the training.
        correct: Int64[Tensor, "N"], what they should be.
    """

    inputs: Tensor
    labels: Tensor
    correct: Tensor

    @property
    def wrong(self) -> npt.NDArray[np.bool_]:
        """Bool[ndarray, "N"]."""
        found: npt.NDArray[np.bool_] = (self.labels != self.correct).numpy()
        return found


def corrupt(
    kind: str, inputs: Tensor, labels: Tensor, classes: int, seed: int, order: tuple[int, ...] | None = None
) -> Corrupted:
    """Put wrong labels into a data set.

    Args:
        kind: one of ``KINDS``, or another percentage.
        inputs: Tensor, "N ...".
        labels: Int64[Tensor, "N"], correct ones.
        classes: how many there are.
        seed: of the draw.
        order: for human confusion, which of the classes stands for each class of CIFAR-10; ``None`` for the same number.

    Raises:
        ValueError: there is no such kind, or human confusion is asked for of other than ten classes.
    """
    name, _, rate = kind.partition("-")
    generator = np.random.default_rng([seed, KINDS.index(kind) if kind in KINDS else len(KINDS)])
    match name:
        case "clean":
            return Corrupted(inputs, labels, labels)
        case "symmetric":
            matrix = symmetric(classes, int(rate) / 100)
        case "pair":
            matrix = pair(classes, int(rate) / 100)
        case "human":
            if classes != 10:
                raise ValueError(f"human confusion was measured on ten classes, and there are {classes}")
            matrix = human(rate, order)
        case "duplicates":
            return _with_duplicates(inputs, labels, classes, int(rate) / 100, generator)
        case _:
            raise ValueError(f"no kind of noise is called {kind!r}; there are {', '.join(KINDS)}")
    return Corrupted(inputs, torch.from_numpy(drawn(matrix, labels.numpy(), generator)), labels)


def symmetric(classes: int, rate: float) -> Matrix:
    """Probability of each given class (column) for each correct one (row): Float64[ndarray, "C C"]."""
    matrix = np.full((classes, classes), rate / (classes - 1))
    np.fill_diagonal(matrix, 1 - rate)
    return matrix


def pair(classes: int, rate: float) -> Matrix:
    """The same, with the next class as the only wrong one."""
    return np.eye(classes) * (1 - rate) + np.roll(np.eye(classes), 1, axis=1) * rate


def human(level: str, order: tuple[int, ...] | None = None) -> Matrix:
    """The same, as people labelled: ``aggregate`` (majority of three), ``random`` (one of them) or ``worst``."""
    counts = np.asarray(_counts()[level], dtype=np.float64)
    places = np.arange(len(counts)) if order is None else np.asarray(order)
    matrix = np.empty_like(counts)
    matrix[np.ix_(places, places)] = counts / counts.sum(axis=1, keepdims=True)
    return matrix


def drawn(matrix: Matrix, labels: npt.NDArray[np.int64], generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """A given class for each correct one."""
    edges = matrix.cumsum(axis=1)[labels]
    return np.minimum((edges < generator.random(len(labels))[:, None]).sum(axis=1), len(matrix) - 1)


def _with_duplicates(
    inputs: Tensor, labels: Tensor, classes: int, share: float, generator: np.random.Generator
) -> Corrupted:
    chosen = torch.from_numpy(generator.choice(len(inputs), round(share * len(inputs)), replace=False))
    copies = inputs[chosen]
    if copies.is_floating_point():
        noise = torch.from_numpy(generator.standard_normal(tuple(copies.shape))).to(copies.dtype)
        copies = copies + _BLUR * inputs.std() * noise
    else:  # words: one of them replaced by that of another place
        rows = torch.arange(len(copies))
        copies = copies.clone()
        first, second = (torch.from_numpy(generator.integers(copies.shape[1], size=len(copies))) for _ in range(2))
        copies[rows, first] = copies[rows, second]
    correct = labels[chosen]
    wrong = (correct + torch.from_numpy(generator.integers(1, classes, size=len(chosen)))) % classes
    return Corrupted(torch.cat([inputs, copies]), torch.cat([labels, wrong]), torch.cat([labels, correct]))


@cache
def _counts() -> dict[str, list[list[int]]]:
    counts: dict[str, list[list[int]]] = json.loads(_COUNTS.read_text(encoding="utf-8"))["counts"]
    return counts


if __name__ == "__main__":
    for level in _counts():
        found = human(level)
        print(
            f"{level}: {1 - found.diagonal().mean():.1%} wrong\n{np.array2string(found, precision=3, suppress_small=True)}"
        )
