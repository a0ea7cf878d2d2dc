"""Predicting each sample's label from the labels of all others: ridge regression on features, each sample left out.

With features X, targets Y and lambda, the fit without sample i is known without fitting again: with the leverage
h_i = x_i' (X'X + lambda)^-1 x_i,

    yhat_i without i  =  (yhat_i - h_i y_i) / (1 - h_i).

Without two samples at once it is the same with the 2 x 2 block of X (X'X + lambda)^-1 X' that belongs to them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diffin.actions.clean.twins import NO_PAIRS, Pairs
from diffin.signals.signals import Floats, Singles

_LAMBDAS = (1e-4, 1e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
_LARGEST_LEVERAGE = 1 - 1e-6
_SMALLEST_SPREAD = 1e-6
_REFERENCE = 3.0


@dataclass(frozen=True)
class Reference:
    """Samples whose labels are known to be right.

    Attributes:
        features: Float[ndarray, "M d"].
        targets: Float64[ndarray, "M C"], one-hot.
    """

    features: Singles
    targets: Floats


class LeaveOneOut:
    """Linear prediction from features that never sees the target of the sample itself.

    Features are standardised; a constant is added; lambda (as a share of N) has the least squared error against ``targets``.

    Args:
        features: Float[ndarray, "N d"].
        targets: Float64[ndarray, "N C"], to choose lambda by.
        reference: fitted as well, each as three samples; never left out.
        pairs: samples that are left out together, each in one pair at most.
    """

    def __init__(
        self, features: Singles, targets: Floats, reference: Reference | None = None, pairs: Pairs = NO_PAIRS
    ) -> None:
        wide = features.astype(np.float64)
        mean, spread = wide.mean(axis=0), np.maximum(wide.std(axis=0), _SMALLEST_SPREAD)
        self._x = _with_constant((wide - mean) / spread)
        gram = self._x.T @ self._x
        self._of_reference: Floats | float = 0.0
        if reference is not None:
            x = _with_constant((reference.features.astype(np.float64) - mean) / spread)
            gram += _REFERENCE * x.T @ x
            self._of_reference = _REFERENCE * x.T @ reference.targets
        eigenvalues, vectors = np.linalg.eigh(gram)
        rotated = self._x @ vectors
        size = len(features)
        self._pairs = pairs
        best: tuple[float, Floats, Floats, Floats] | None = None
        for strength in _LAMBDAS:
            inverse = 1 / (np.maximum(eigenvalues, 0) + strength * size)
            self._fit = (rotated * inverse) @ vectors.T
            self._leverage = np.minimum((rotated**2 * inverse).sum(axis=1), _LARGEST_LEVERAGE)
            self._between = (rotated[self._pairs[:, 0]] * inverse * rotated[self._pairs[:, 1]]).sum(axis=1)
            error = float(((self(targets) - targets) ** 2).mean())
            if best is None or error < best[0]:
                best = error, self._fit, self._leverage, self._between
        assert best is not None
        _, self._fit, self._leverage, self._between = best

    def __call__(self, targets: Floats) -> Floats:
        """Each sample's target, predicted from those of the others: Float64[ndarray, "N C"]."""
        fitted = self._fit @ (self._x.T @ targets + self._of_reference)
        own = self._leverage[:, None]
        predicted: Floats = (fitted - own * targets) / (1 - own)
        if len(self._pairs):
            block = np.empty((len(self._pairs), 2, 2))
            block[:, [0, 1], [0, 1]] = 1 - self._leverage[self._pairs]
            block[:, 0, 1] = block[:, 1, 0] = -self._between
            predicted[self._pairs] = targets[self._pairs] - np.linalg.solve(
                block, targets[self._pairs] - fitted[self._pairs]
            )
        return predicted


def _with_constant(x: Floats) -> Floats:
    return np.concatenate([x, np.ones((len(x), 1))], axis=1)
