"""Are m checkpoints enough? How far the ranking would change with m others.

The terms of the checkpoints are split into two halves of h each; the Spearman correlation r between the sums of the
halves, averaged over splits, says how far h terms determine the ranking. For n = m / h times as many (Spearman 1910,
Brown 1910):

    reliability = n r / (1 + (n - 1) r),

the correlation to expect between these scores and ones from m other checkpoints of the same run. It speaks of the noise
between checkpoints only: an estimator that errs in the same way at each of them is stable and wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np
import numpy.typing as npt

from diffin.scoring.columns import Floats, Terms

SPLITS = 20
MAX_ROWS = 100_000
ENOUGH = 0.9
TOO_FEW = 0.7


@dataclass(frozen=True)
class Stability:
    """How stable a ranking is.

    Attributes:
        checkpoints: m, checkpoints or trainings.
        reliability: expected Spearman correlation with a ranking from m others, in [0, 1]; ``None`` if it cannot be told,
            from one, or fewer than three samples.
        forecast_doubled: the same for twice as many.
        kind: what they are.
    """

    checkpoints: int
    reliability: float | None
    forecast_doubled: float | None
    kind: Terms = "draws"

    def sentence(self) -> str:
        """What it means, for a person."""
        if self.kind == "parts":
            return (
                "These scores come from one training whole; nothing was sampled from it, so there is no spread to tell from. "
                "How another training would rank the samples cannot be told from one: pass several recordings."
            )
        if self.reliability is None or self.forecast_doubled is None:
            several = "trainings" if self.kind == "runs" else "checkpoints"
            return f"How stable the ranking is cannot be told: that takes two {several} and three samples at least."
        if self.reliability >= ENOUGH:
            verdict = "enough"
        elif self.reliability >= TOO_FEW:
            verdict = "usable for the ends of the ranking; more would sharpen its middle"
        else:
            verdict = "too few to rely on single ranks"
        count = self.checkpoints
        of, about = (
            ("checkpoints", "choice of checkpoints") if self.kind == "draws" else ("trainings", "noise of training")
        )
        where = " of the same run" if self.kind == "draws" else ""
        return (
            f"{count} {of} are {verdict}: {count} others{where} would give a ranking that agrees to "
            f"{self.reliability:.2f} (Spearman); with {2 * count} {of}, to {self.forecast_doubled:.2f}. "
            f"This is about the {about}, not about whether the estimator is right."
        )


def stability(terms: Floats, seed: int = 0, kind: Terms = "draws") -> Stability:
    """Stability of the ranking by the sum of each row.

    Args:
        terms: Float64[ndarray, "N m"], one column a checkpoint or training; rows with a NaN are left out.
        seed: which splits are tried, where there are more than :data:`SPLITS`.
        kind: what the columns are; not parts of one training.
    """
    count = terms.shape[1]
    terms = terms[np.isfinite(terms).all(axis=1)]
    if count < 2 or len(terms) < 3:
        return Stability(count, None, None, kind)
    correlations = [spearman(terms[:, a].sum(axis=1), terms[:, b].sum(axis=1)) for a, b in _splits(count, seed)]
    half = max(0.0, float(np.mean(correlations)))
    ratio = count / (count // 2)
    return Stability(count, lengthened(half, ratio), lengthened(half, 2 * ratio), kind)


def lengthened(reliability: float, ratio: float) -> float:
    """Spearman-Brown: the reliability of a sum of ``ratio`` times as many terms."""
    return ratio * reliability / (1 + (ratio - 1) * reliability)


def spearman(a: Floats, b: Floats) -> float:
    """Rank correlation, ties sharing their mean rank; 0 where one of them is constant."""
    ranks_a, ranks_b = _ranks(a), _ranks(b)
    ranks_a, ranks_b = ranks_a - ranks_a.mean(), ranks_b - ranks_b.mean()
    size = float(np.sqrt((ranks_a @ ranks_a) * (ranks_b @ ranks_b)))
    return float(ranks_a @ ranks_b) / size if size else 0.0


def _ranks(values: Floats) -> Floats:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean_rank: Floats = (last - (counts - 1) / 2)[inverse]
    return mean_rank


def _splits(count: int, seed: int) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Pairs of disjoint sets of ``count // 2`` columns: all there are, or :data:`SPLITS` drawn at random."""
    half = count // 2
    if comb(count, half) <= SPLITS:
        for chosen in combinations(range(count), half):
            rest = [column for column in range(count) if column not in chosen]
            yield np.array(chosen), np.array(rest[:half])
        return
    generator = np.random.default_rng(seed)
    for _ in range(SPLITS):
        order = generator.permutation(count)
        yield order[:half], order[half : 2 * half]
