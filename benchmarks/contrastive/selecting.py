"""Which pairs to keep: every selection of the pruning benchmark is an order of the pool, best first.

random           as drawn
distinct         as drawn, but no caption a second time before every caption came once
clip-score       by similarity of picture and caption after training on everything, highest first
mean clip-score  the same, mean over checkpoints
loss             by loss after training, lowest first
el2n             by how far the probability of the own caption is from 1, mean over checkpoints, hardest first
tracin           by :class:`diffin.TracIn` on the query, most helpful first
influence        by :class:`diffin.Unrolled` on the query, most helpful first
kinds            by influence, that of a pair drawn towards the mean of its cluster by what two trainings do not agree on

``+distinct`` behind a name: by that order, but no caption a second time before every caption came once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from sklearn.cluster import KMeans

Indices = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def ordered(score: Floats) -> Indices:
    """Int64[ndarray, "N"], lowest score first."""
    return np.argsort(score, kind="stable").astype(np.int64)


def distinct(order: Indices, captions: Sequence[str]) -> Indices:
    """The same order with all second occurrences of a caption after all first ones, third ones after those, and so on."""
    met: dict[str, int] = {}
    occurrence = np.empty(len(order), dtype=np.int64)
    for place, position in enumerate(order.tolist()):
        occurrence[place] = met[captions[position]] = met.get(captions[position], -1) + 1
    return order[np.argsort(occurrence, kind="stable")]


def of_kinds(influences: Floats, features: npt.NDArray[np.float32], kinds: int, seed: int) -> Floats:
    """Float64[ndarray, "N"], influence with the luck of single pairs taken out.

    Influence of one pair among thousands is small and mostly luck of the run; of a kind of pairs it is neither, and what is
    learned of a query by its own twin in the pool is shared by those that have no twin in the query. So a pair is given the
    mean of its cluster, and of its distance to that as much as the trainings agree on: r of the Spearman-Brown formula.

    Args:
        influences: Float64[ndarray, "N R"], of R trainings, two or more.
        features: Float32[ndarray, "N width"], of picture and caption.
        kinds: how many clusters.
        seed: of the clustering.
    """
    found = KMeans(kinds, n_init=1, random_state=seed).fit_predict(features)
    counts = np.maximum(np.bincount(found, minlength=kinds), 1)
    means = np.stack([np.bincount(found, one, minlength=kinds) / counts for one in influences.T], axis=1)
    apart, runs = influences - means[found], influences.shape[1]
    agreement = np.corrcoef(apart.T)[np.triu_indices(runs, 1)].mean()
    share = max(0.0, runs * agreement / (1 + (runs - 1) * agreement))
    result: Floats = means[found].mean(axis=1) + share * apart.mean(axis=1)
    return result
