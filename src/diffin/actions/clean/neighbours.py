"""Which classes the nearest neighbours of a sample were given."""

from __future__ import annotations

import numpy as np

from diffin.actions.clean.twins import NO_PAIRS, Pairs
from diffin.actions.nearest import nearest
from diffin.signals.signals import Floats, Singles
from diffin.sources import Indices

NEIGHBOURS = 20
_TEMPERATURE = 0.1
_MOST = 20_000
"""More samples than these are not all compared with each other: neighbours are sought among so many, drawn once."""


def neighbour_shares(features: Singles, labels: Indices, classes: int, pairs: Pairs = NO_PAIRS) -> Floats:
    """The share of each class among the nearest others by cosine, nearer ones counting more: Float64[ndarray, "N C"].

    Args:
        features: Float32[ndarray, "N d"]; their mean is taken off.
        labels: Int64[ndarray, "N"].
        classes: C.
        pairs: samples that do not count as each other's neighbours.
    """
    size = len(features)
    centred = features - features.mean(axis=0)
    among = None if size <= _MOST else np.sort(np.random.default_rng(0).choice(size, _MOST, replace=False))
    count = min(NEIGHBOURS, min(size, _MOST) - 1)
    shares = np.full((size, classes), 1 / classes)
    if count < 1:
        return shares
    twin = np.full(size, -1)
    twin[pairs] = pairs[:, ::-1]
    for rows, neighbours, cosine in nearest(centred, count, among):
        near = np.where(neighbours == twin[rows, None], -np.inf, cosine.astype(np.float64))
        weight = np.exp((near - near.max(axis=1, keepdims=True)) / _TEMPERATURE)
        found = np.zeros((len(rows), classes))
        np.add.at(found, (np.arange(len(rows))[:, None], labels[neighbours]), weight)
        shares[rows] = found / weight.sum(axis=1, keepdims=True)
    return shares
