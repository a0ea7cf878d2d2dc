"""How well estimates agree with a truth, and how well any estimate could.

Spearman's and Pearson's coefficients, with percentile bootstrap intervals over the samples (or groups, or subsets). The
truth is noisy where it is a mean over K orders of the data. Its *reliability* is the rank correlation to expect with the
mean over K further orders: halves of the replicas are compared and lengthened (:mod:`diffin.scoring.stability`). That is the
*ceiling* of the tables: what a second truth of the same price would reach. It is not the highest number that an estimate
can reach. An estimate of the noiseless influence correlates with the noisy mean to the square root of the reliability
(Spearman 1904, correction for attenuation), so that this is the bound, :attr:`Agreement.bound`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from diffin.errors import EvaluationError
from diffin.evaluation.truth import Floats, Truth
from diffin.scoring.stability import stability

_LEVEL = 0.95
_BLOCK = 2**22
_FEWEST = 3


@dataclass(frozen=True)
class Agreement:
    """How well an estimate agrees with a truth. What cannot be told is ``None``, and :attr:`note` says why.

    Attributes:
        spearman: rank correlation; for single query samples, the mean over them.
        spearman_interval: 95 %, percentile bootstrap over the samples, groups or subsets.
        pearson: correlation.
        pearson_interval: likewise.
        samples: how many samples, groups or subsets were compared.
        left_out: how many were not, because the estimate or the truth is not finite.
        ceiling: the reliability of the truth: Spearman correlation to expect between it and another of as many orders;
            ``None`` for a truth of one order.
        note: why something cannot be told; else empty.
    """

    spearman: float | None
    spearman_interval: tuple[float, float] | None
    pearson: float | None
    pearson_interval: tuple[float, float] | None
    samples: int
    left_out: int
    ceiling: float | None
    note: str = ""

    @property
    def bound(self) -> float | None:
        """The highest Spearman correlation that an estimate can be expected to reach: the root of :attr:`ceiling`."""
        return None if self.ceiling is None else float(self.ceiling**0.5)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "bound": self.bound}


def agreement(scores: Floats, truth: Truth, *, bootstrap: int = 1000, seed: int = 0) -> Agreement:
    """Compare scores with a truth.

    Args:
        scores: Float64[ndarray, "N"], influence on the mean query loss, of every sample of the training set, NaN where there
            is none. For a truth with single query samples also Float64[ndarray, "Q N"], influence on each of them; the
            coefficients are then means over the Q queries. Sums over members are compared with groups; of subsets, the linear
            datamodeling score is the Spearman coefficient (Park et al., "TRAK", 2023).
        truth: what to compare with.
        bootstrap: resamples for the intervals; 0 for none.
        seed: of the resamples.

    Raises:
        EvaluationError: the shapes do not fit.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim == 2 and (truth.per_query is None or len(scores) != len(truth.per_query)):
        have = "no single query samples" if truth.per_query is None else f"{len(truth.per_query)} single query samples"
        raise EvaluationError(f"scores for {len(scores)} single query samples are given, and the truth has {have}")
    if scores.ndim not in (1, 2):
        raise EvaluationError(f"scores have shape {scores.shape}; pass (N,), or (Q, N) for single query samples")
    estimate = np.atleast_2d(truth.predicted(scores))
    actual = truth.influence[None] if scores.ndim == 1 or truth.per_query is None else truth.per_query
    usable = (np.isfinite(estimate) & np.isfinite(actual)).all(axis=0)
    ceiling = reliability(truth)
    estimate, actual = estimate[:, usable], actual[:, usable]
    count, left_out = int(usable.sum()), int((~usable).sum())
    note = _obstacle(estimate, actual)
    if note:
        return Agreement(None, None, None, None, count, left_out, ceiling, note)
    coefficients = spearman(estimate, actual), pearson(estimate, actual)
    intervals = _intervals(estimate, actual, bootstrap, seed)
    return Agreement(
        coefficients[0], intervals[0], coefficients[1], intervals[1], count, left_out, ceiling,
    )  # fmt: skip


def reliability(truth: Truth) -> float | None:
    """Spearman correlation to expect between the truth and another of as many orders; ``None`` from one order."""
    replicas = truth.replicas[:, np.isfinite(truth.replicas).all(axis=0)]
    return stability(replicas.T).reliability


def spearman(a: Floats, b: Floats) -> float:
    """Mean over the rows of the rank correlation of two Float64[ndarray, "Q G"], ties sharing their mean rank."""
    # Imported where it is used, to keep `import diffin` fast.
    from scipy.stats import spearmanr

    return float(np.mean([spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)]))


def pearson(a: Floats, b: Floats) -> float:
    """Mean over the rows of the correlation of two Float64[ndarray, "Q G"]."""
    from scipy.stats import pearsonr

    return float(np.mean([pearsonr(x, y).statistic for x, y in zip(a, b, strict=True)]))


def _obstacle(estimate: Floats, actual: Floats) -> str:
    if estimate.shape[1] < _FEWEST:
        return f"{estimate.shape[1]} samples can be compared, and that takes {_FEWEST}"
    for what, values in (("estimate", estimate), ("truth", actual)):
        if (np.ptp(values, axis=1) == 0).any():
            return f"the {what} is the same for all samples, so that there is no correlation"
    return ""


def _intervals(
    estimate: Floats, actual: Floats, bootstrap: int, seed: int
) -> tuple[tuple[float, float] | None, tuple[float, float] | None]:
    from scipy.stats import rankdata

    if bootstrap < 1:
        return None, None
    ranks, plain = [], []
    for chosen in _resamples(estimate.shape[1], bootstrap, seed):
        a, b = estimate[:, chosen], actual[:, chosen]  # "Q resamples G"
        plain.append(_correlations(a, b).mean(axis=0))
        ranks.append(_correlations(rankdata(a, axis=-1), rankdata(b, axis=-1)).mean(axis=0))
    return _percentiles(np.concatenate(ranks)), _percentiles(np.concatenate(plain))


def _resamples(count: int, bootstrap: int, seed: int) -> Iterator[Any]:
    """Blocks of rows of positions, drawn with replacement; no block is large."""
    generator = np.random.default_rng(seed)
    rows = max(1, _BLOCK // count)
    for start in range(0, bootstrap, rows):
        yield generator.integers(count, size=(min(rows, bootstrap - start), count))


def _correlations(a: Floats, b: Floats) -> Floats:
    """Along the last dimension; NaN where a resample is constant."""
    a, b = a - a.mean(axis=-1, keepdims=True), b - b.mean(axis=-1, keepdims=True)
    product: Callable[[Floats, Floats], Floats] = lambda x, y: np.einsum("...g,...g->...", x, y)  # noqa: E731
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Floats = product(a, b) / np.sqrt(product(a, a) * product(b, b))
    return found


def _percentiles(values: Floats) -> tuple[float, float] | None:
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    low, high = np.quantile(values, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return float(low), float(high)
