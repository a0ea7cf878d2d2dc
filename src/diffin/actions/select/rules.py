"""Rules that keep some of a set of samples, given a number or a place for each: no model is looked at here."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from diffin.actions.nearest import nearest
from diffin.actions.select.shares import Rule
from diffin.scoring.columns import Floats
from diffin.sources import Indices

Features = npt.NDArray[np.float32]

STRATA = 50
NEIGHBOURS = 10

_CUTS = ((0.1, 0.3), (0.3, 0.1), (0.5, 0.0))
"""Share kept, and the share of hardest samples that coverage-centric selection drops before: more where less is kept."""


def highest(score: Floats) -> Rule:
    """Keeps the samples of highest score.

    Args:
        score: Float64[ndarray, "N"]; a sample without one (NaN) comes last.
    """

    def rule(positions: Indices, wanted: int) -> Indices:
        return positions[np.argsort(-score[positions], kind="stable")[:wanted]]

    return rule


def usual_cut(fraction: float) -> float:
    """The share of hardest samples to drop before stratifying, where ``fraction`` of all is kept.

    Zheng et al. (2023) search for it by training, and give 0.3 for a tenth of CIFAR-10; it falls to nothing at a half here.
    """
    kept, cut = zip(*_CUTS, strict=True)
    return float(np.interp(fraction, kept, cut))


def stratified(difficulty: Floats, cut: float, seed: int, strata: int = STRATA) -> Rule:
    """Coverage-centric selection (Zheng et al., "Coverage-centric Coreset Selection for High Pruning Rates", ICLR 2023).

    Drops the hardest ``cut`` of the samples, divides the range of difficulty of the rest into ``strata`` of equal width,
    and shares out what is kept evenly, the smallest stratum first; what a stratum cannot give goes to those after it.

    Args:
        difficulty: Float64[ndarray, "N"]; a sample without one counts as hardest.
        cut: 0 to 1; less is dropped if otherwise too few would be left.
        seed: of the draws within strata.
        strata: how many.
    """
    generator = np.random.default_rng(seed)

    def rule(positions: Indices, wanted: int) -> Indices:
        order = positions[np.argsort(difficulty[positions], kind="stable")]
        left = order[: max(wanted, len(order) - int(cut * len(order)))]
        values = difficulty[left]
        finite = values[np.isfinite(values)]
        edges = np.linspace(finite.min(), finite.max(), strata + 1)[1:-1] if len(finite) else np.zeros(0)
        of = np.searchsorted(edges, values, side="right")
        parts = sorted((left[of == k] for k in np.unique(of)), key=len)
        kept = []
        for number, part in enumerate(parts):
            take = min(len(part), wanted // (len(parts) - number))
            kept.append(generator.choice(part, take, replace=False))
            wanted -= take
        return np.concatenate(kept)

    return rule


def moderate(features: Features, labels: Indices | None) -> Rule:
    """Moderate selection (Xia et al., "Moderate Coreset", ICLR 2023).

    Keeps the samples whose distance to the centre of their class is closest to the median distance of that class.

    Args:
        features: Float32[ndarray, "N d"].
        labels: Int64[ndarray, "N"]; ``None`` for one centre of everything.
    """
    from_median = np.zeros(len(features))
    for part in (np.flatnonzero(labels == kind) for kind in np.unique(labels)) if labels is not None else [slice(None)]:
        distance = np.linalg.norm(features[part] - features[part].mean(axis=0), axis=1).astype(np.float64)
        from_median[part] = np.abs(distance - np.median(distance))
    return highest(-from_median)


def k_center(features: Features, seed: int) -> Rule:
    """The greedy k-centre rule (Sener and Savarese, ICLR 2018): always the sample farthest from all that are kept.

    Args:
        features: Float32[ndarray, "N d"].
        seed: of the first sample.
    """
    generator = np.random.default_rng(seed)

    def rule(positions: Indices, wanted: int) -> Indices:
        own = features[positions]
        squares = np.square(own).sum(axis=1)
        nearest = np.full(len(own), np.inf, dtype=np.float32)
        at = int(generator.integers(len(own)))
        kept = []
        for _ in range(wanted):
            kept.append(at)
            nearest = np.minimum(nearest, squares + squares[at] - 2 * own @ own[at])
            nearest[at] = -np.inf
            at = int(nearest.argmax())
        return positions[kept]

    return rule


def diverse(score: Floats, features: Features, strength: float = 1.0) -> Rule:
    """Greedily the samples of high score that resemble little of what is kept.

    It maximises ``sum_i q_i x_i - strength sum_ij K_ij x_i x_j`` over membership x, as InfoMax (Tan et al., "Data Pruning by
    Information Maximization", ICLR 2025) does by a relaxed programme, with q the rank of the score, from 0 to 1, and K the
    cosine similarity of features between nearest neighbours, 0 elsewhere.

    Args:
        score: Float64[ndarray, "N"], high to keep; NaN comes last.
        features: Float32[ndarray, "N d"].
        strength: how much a neighbour of the same direction that is kept counts against a sample.
    """

    def rule(positions: Indices, wanted: int) -> Indices:
        order = np.argsort(np.nan_to_num(score[positions], nan=-np.inf), kind="stable")
        gain = np.empty(len(positions))
        gain[order] = np.linspace(0, 1, len(positions))
        neighbours, similarity = _nearest(features[positions])
        kept = []
        for _ in range(wanted):
            at = int(gain.argmax())
            kept.append(at)
            gain[at] = -np.inf
            gain[neighbours[at]] -= strength * similarity[at]
        return positions[kept]

    return rule


def _nearest(features: Features) -> tuple[Indices, Floats]:
    """Neighbours Int64[ndarray, "n k"] of each sample by cosine, and how similar they are, from 0 to 1."""
    size = len(features)
    most = min(NEIGHBOURS, size - 1)
    neighbours, similarity = np.zeros((size, most), dtype=np.int64), np.zeros((size, most))
    if most > 0:
        for rows, found, cosine in nearest(features, most):
            neighbours[rows], similarity[rows] = found, np.maximum(cosine, 0)
    return neighbours, similarity
