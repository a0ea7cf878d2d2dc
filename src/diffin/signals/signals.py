"""Per-sample signals of a classifier along its training, without derivatives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from diffin.sources import Indices

Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Signals:
    """What a classifier said of N samples at m states of its training; the last state is the final one.

    Attributes:
        index: Int64[ndarray, "N"], positions in the dataset, ascending.
        steps: steps taken before each state, ascending.
        labels: Int64[ndarray, "N"], the given class.
        loss: Float64[ndarray, "N m"], cross entropy in nats, without label smoothing and class weights.
        margin: Float64[ndarray, "N m"], the logit of the given class minus the largest other one.
        el2n: Float64[ndarray, "N m"], the Euclidean norm of softmax minus one-hot (Paul et al. 2021), 0 to sqrt 2.
        correct: Bool[ndarray, "N m"], whether the given class has the largest logit; a tie counts as wrong.
        probabilities: Float32[ndarray, "N C"], softmax, mean over the states.
        final_probabilities: Float32[ndarray, "N C"], at the final state.
        features: Float32[ndarray, "N d"], input of the last linear layer at the final state; ``None`` if no linear layer
            makes the logits.
        early_features: Float32[ndarray, "N d"], the same at a state before the middle of the training, where wrong labels
            are not learned by heart yet; ``None`` with ``features``.
        hidden: if asked for, features by the steps taken before each state, the one before the first step included where
            it was stored: Float32[ndarray, "N d"], by a random projection where there are many; logits stand for them
            where no linear layer makes the logits.
    """

    index: Indices
    steps: tuple[int, ...]
    labels: Indices
    loss: Floats
    margin: Floats
    el2n: Floats
    correct: Bools
    probabilities: Singles
    final_probabilities: Singles
    features: Singles | None
    early_features: Singles | None
    hidden: Mapping[int, Singles] = field(default_factory=dict)

    @property
    def classes(self) -> int:
        """The number of classes, that of the logits."""
        return int(self.final_probabilities.shape[1])

    @cached_property
    def mean_loss(self) -> Floats:
        """Float64[ndarray, "N"], mean loss over the states."""
        mean: Floats = self.loss.mean(axis=1)
        return mean

    @property
    def final_loss(self) -> Floats:
        """Float64[ndarray, "N"], loss at the final state."""
        return self.loss[:, -1]

    @cached_property
    def area_under_margin(self) -> Floats:
        """Float64[ndarray, "N"], mean margin over the states (AUM, Pleiss et al. 2020); low for a wrong label."""
        mean: Floats = self.margin.mean(axis=1)
        return mean

    @cached_property
    def mean_el2n(self) -> Floats:
        """Float64[ndarray, "N"], mean error norm over the states."""
        mean: Floats = self.el2n.mean(axis=1)
        return mean

    @cached_property
    def forgetting(self) -> Indices:
        """Int64[ndarray, "N"], how often a sample went from right to wrong between states (Toneva et al. 2019).

        One that was never right has m, more than any other can have.
        """
        forgotten: Indices = (self.correct[:, :-1] & ~self.correct[:, 1:]).sum(axis=1).astype(np.int64)
        forgotten[~self.correct.any(axis=1)] = self.correct.shape[1]
        return forgotten

    @cached_property
    def failed(self) -> Indices:
        """Int64[ndarray, "failed"], rows whose loss is not finite at some state."""
        return np.flatnonzero(~np.isfinite(self.loss).all(axis=1)).astype(np.int64)

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.labels)
