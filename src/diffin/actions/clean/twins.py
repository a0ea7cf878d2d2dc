"""Near copies that were given different labels: at most one of them is right, and neither can speak for the other.

A sample whose copy has another label is contradicted by the sample that is most like it. Which of the two is wrong the rest
of the data must say, so predictions from others leave both out.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from diffin.actions.nearest import nearest
from diffin.signals.signals import Floats, Singles
from diffin.sources import Indices

_NEARER = 0.5
"""A near copy is nearer than this share of the distance of the second nearest (the ratio test of Lowe, 2004)."""
_MOST = 100_000
"""All samples are compared with all others; of larger sets none are."""

Pairs = npt.NDArray[np.int64]
NO_PAIRS: Pairs = np.empty((0, 2), dtype=np.int64)


def twins(features: Singles, labels: Indices) -> Pairs:
    """Samples that are each other's nearest, by far, and were given different labels: Int64[ndarray, "P 2"].

    Args:
        features: Float32[ndarray, "N d"]; their mean is taken off.
        labels: Int64[ndarray, "N"].
    """
    size = len(features)
    if not 2 < size <= _MOST:
        return NO_PAIRS
    other, ratio = np.empty(size, dtype=np.int64), np.empty(size)
    for rows, neighbours, cosine in nearest(features - features.mean(axis=0), 2):
        order = np.argsort(-cosine, axis=1)
        distance = np.sqrt(np.maximum(1 - np.take_along_axis(cosine, order, axis=1).astype(np.float64), 0))
        other[rows] = np.take_along_axis(neighbours, order, axis=1)[:, 0]
        ratio[rows] = distance[:, 0] / np.maximum(distance[:, 1], np.finfo(np.float64).tiny)
    mine = np.arange(size)
    near = (ratio < _NEARER) & (other[other] == mine) & (labels != labels[other])
    found = mine[near & near[other] & (mine < other)]
    return np.stack([found, other[found]], axis=1)


def shared(values: Floats, pairs: Pairs) -> Floats:
    """With the mean over the two in the place of the values of each."""
    found = values.copy()
    found[pairs] = values[pairs].mean(axis=1, keepdims=True)
    return found
