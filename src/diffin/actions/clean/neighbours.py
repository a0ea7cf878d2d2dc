"""Which classes the nearest neighbours of a sample were given."""

from __future__ import annotations

import numpy as np

from diffin.signals.signals import Floats, Singles
from diffin.sources import Indices

NEIGHBOURS = 20
_TEMPERATURE = 0.1
_BLOCK = 1000
_MOST = 20_000
"""More samples than these are not all compared with each other: neighbours are sought among so many, drawn once."""


def neighbour_shares(features: Singles, labels: Indices, classes: int) -> Floats:
    """The share of each class among the nearest others by cosine, nearer ones counting more: Float64[ndarray, "N C"].

    Args:
        features: Float32[ndarray, "N d"]; their mean is taken off.
        labels: Int64[ndarray, "N"].
        classes: C.
    """
    size = len(features)
    centred = features - features.mean(axis=0)
    unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-9)
    chosen = np.arange(size) if size <= _MOST else np.sort(np.random.default_rng(0).choice(size, _MOST, replace=False))
    place = np.full(size, -1)
    place[chosen] = np.arange(len(chosen))
    count = min(NEIGHBOURS, len(chosen) - 1)
    shares = np.full((size, classes), 1 / classes)
    if count < 1:
        return shares
    for start in range(0, size, _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, size))
        likeness = unit[rows] @ unit[chosen].T
        own = place[rows]
        likeness[np.flatnonzero(own >= 0), own[own >= 0]] = -np.inf
        nearest = np.argpartition(-likeness, count - 1, axis=1)[:, :count]
        near = np.take_along_axis(likeness, nearest, axis=1).astype(np.float64)
        weight = np.exp((near - near.max(axis=1, keepdims=True)) / _TEMPERATURE)
        found = np.zeros((len(rows), classes))
        given = labels[chosen][nearest]
        np.add.at(found, (np.arange(len(rows))[:, None], given), weight)
        shares[rows] = found / weight.sum(axis=1, keepdims=True)
    return shares
