"""The nearest other samples by cosine, among all or among some."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from diffin.signals.signals import Singles
from diffin.sources import Indices

_BLOCK = 1024
_SHORTEST = 1e-9


def nearest(features: Singles, count: int, among: Indices | None = None) -> Iterator[tuple[Indices, Indices, Singles]]:
    """For blocks of samples, who their neighbours are and how similar; none is its own.

    Args:
        features: Float32[ndarray, "N d"]; one without length has a cosine of 0 with everything.
        count: k, how many neighbours, at least one and fewer than are sought among.
        among: Int64[ndarray, "M"], ascending, the samples to seek among; ``None`` for all.

    Yields:
        Int64[ndarray, "B"], the samples of the block; Int64[ndarray, "B k"], their neighbours, in no order; and
        Float32[ndarray, "B k"], the cosines.
    """
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), _SHORTEST)
    size = len(unit)
    chosen = np.arange(size) if among is None else among
    others = unit if among is None else unit[among]
    place = np.full(size, -1)
    place[chosen] = np.arange(len(chosen))
    for start in range(0, size, _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, size))
        cosine = unit[rows] @ others.T
        own = place[rows]
        cosine[np.flatnonzero(own >= 0), own[own >= 0]] = -np.inf
        found = np.argpartition(-cosine, count - 1, axis=1)[:, :count]
        yield rows, chosen[found], np.take_along_axis(cosine, found, axis=1)
