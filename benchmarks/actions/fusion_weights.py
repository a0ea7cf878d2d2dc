"""The weights of the evidence of ``diffin clean``, from wrong labels in data that its tables do not use.

A conditional logit: which class is the right one, given the log probabilities and switches of
:func:`diffin.actions.clean.fusion.gather`. Digits and Gaussian blobs, every kind of noise, nets that stop early and nets that
know the labels by heart; every training counts the same.

    python benchmarks/actions/fusion_weights.py     # about ten minutes on two cores
"""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from cleaning_cells import REGIMES, Cell, record
from noise import KINDS
from scipy.optimize import minimize
from torch.utils.data import TensorDataset

from diffin.actions.clean.fusion import WEIGHTS, gather
from diffin.signals import observe
from diffin.tasks import Classification

DATA = ("digits", "blobs")
SAMPLES = 400
"""Of each training, drawn once."""
PENALTY = 1e-3

Floats = npt.NDArray[np.float64]


def evidence(cell: Cell) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Evidence Float64[ndarray, "n C k"] and right classes Int64[ndarray, "n"] of some samples of a training."""
    with tempfile.TemporaryDirectory() as folder:
        made = record(cell, Path(folder) / "run")
        train = TensorDataset(made.train.inputs, made.train.labels)
        signals = observe(Classification(made.model), made.trajectory, train, hidden=True, progress=False)
    columns = gather(signals.hidden, signals.margin, signals.labels, signals.classes).columns
    chosen = np.random.default_rng(0).permutation(len(columns))[:SAMPLES]
    return columns[chosen], made.train.correct.numpy()[chosen]


def fitted(trainings: list[tuple[Floats, npt.NDArray[np.int64]]]) -> Floats:
    """The most likely weights, Float64[ndarray, "k"]."""

    def objective(weights: Floats) -> tuple[float, Floats]:
        loss, gradient = 0.0, np.zeros_like(weights)
        for columns, right in trainings:
            logits = columns @ weights
            probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
            probabilities /= probabilities.sum(axis=1, keepdims=True)
            rows = np.arange(len(right))
            loss -= float(np.log(probabilities[rows, right]).mean()) / len(trainings)
            expected = (probabilities[:, :, None] * columns).sum(axis=1)
            gradient -= (columns[rows, right] - expected).mean(axis=0) / len(trainings)
        return loss + PENALTY * float(weights @ weights) / 2, gradient + PENALTY * weights

    found: Floats = minimize(objective, np.zeros(len(WEIGHTS)), jac=True, method="L-BFGS-B").x
    return found


def main() -> None:
    torch.set_num_threads(1)
    trainings = []
    for data, noise, regime in itertools.product(DATA, KINDS, REGIMES):
        trainings.append(evidence(Cell(data, noise, regime, 0)))
        print(f"{data} {noise} {regime}", flush=True)
    for name, weight in zip(WEIGHTS, fitted(trainings), strict=True):
        print(f"{name:16} {weight:6.2f}   in the code {WEIGHTS[name]:.2f}")


if __name__ == "__main__":
    main()
