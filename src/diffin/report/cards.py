"""The samples at both ends of the ranking, ready for the page."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from diffin.report.numbers import Unit, decimals_for, signed, three_digits
from diffin.report.predictions import Said
from diffin.report.samples import Shown
from diffin.scoring.scores import Scores

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_WIDTH, _HEIGHT = 100.0, 24.0
_MOST_BARS = 60


class Bar(NamedTuple):
    """A bar of a sparkline, in a box of 100 x 24 whose y points down."""

    x: float
    y: float
    width: float
    height: float
    harms: bool


@dataclass(frozen=True)
class Card:
    """One sample as the page shows it. All influences are strings in the page's unit.

    Attributes:
        index: position in the training data set.
        place: 1 for the most extreme of its side.
        rank: 1 for the first of all ranked samples: the most harmful, or that which depends most on itself.
        row: its row of the scores.
        influence: signed, with its decimals aligned over the side.
        error: standard error, or ``None`` where there is none (one checkpoint).
        loss: mean loss over the checkpoints.
        sparkline: a bar for each checkpoint, or neighbouring ones together.
        baseline: y of zero in the sparkline.
    """

    index: int
    place: int
    rank: int
    row: int
    influence: str
    error: str | None
    loss: str
    flagged: bool
    shown: Shown
    label: str | None
    prediction: str | None
    sparkline: list[Bar]
    baseline: float

    @property
    def measured(self) -> str:
        """Influence, with its standard error where there is one."""
        return f"{self.influence} \u00b1 {self.error}" if self.error else self.influence

    @property
    def alt(self) -> str:
        """The sample in words, for whoever does not see its picture."""
        label = f", labelled {self.label}" if self.label else ""
        prediction = f", predicted {self.prediction}" if self.prediction else ""
        return f"Sample {self.index}{label}{prediction}"


@dataclass(frozen=True)
class Side:
    """One end of the ranking: the rows of ``scores`` to show, most extreme first."""

    indices: Ints
    rows: Ints
    total: int

    @classmethod
    def harmful(cls, scores: Scores, top: int) -> Side:
        """Up to ``top`` samples of positive influence."""
        total = int((scores.influence > 0).sum())
        return cls._of(scores, scores.most_harmful(min(top, total)) if total else [], total)

    @classmethod
    def helpful(cls, scores: Scores, top: int) -> Side:
        """Up to ``top`` samples of negative influence."""
        total = int((scores.influence < 0).sum())
        return cls._of(scores, scores.most_helpful(min(top, total)) if total else [], total)

    @classmethod
    def least(cls, scores: Scores, top: int, others: int) -> Side:
        """Up to ``top`` samples of the largest influence, whatever its sign, but for ``others`` that are shown elsewhere."""
        ranked = int(np.isfinite(scores.influence).sum())
        count = min(top, ranked - others)
        return cls._of(scores, scores.most_harmful(count) if count else [], ranked)

    @classmethod
    def _of(cls, scores: Scores, indices: Any, total: int) -> Side:
        indices = np.asarray(indices, dtype=np.int64)
        return cls(indices, np.searchsorted(scores.index, indices), total)


def make_cards(
    scores: Scores,
    side: Side,
    ranks: Ints,
    unit: Unit,
    flagged: Set[int],
    shown: Mapping[int, Shown],
    said: Mapping[int, Said],
) -> list[Card]:
    """The cards of one side.

    Args:
        scores: of the run.
        side: what to show, most extreme first.
        ranks: rank of every row, 1 for the first.
        unit: of the page.
        flagged: indices that get a badge.
        shown: what a sample looks like, by index.
        said: what data and model say of it, by index.
    """
    influence = scores.influence[side.rows] * unit.factor
    errors = scores.standard_error[side.rows] * unit.factor
    losses = scores.loss[side.rows]
    terms = scores.terms[side.rows]
    decimals = decimals_for(influence)
    cards = []
    for i, (index, row) in enumerate(zip(side.indices, side.rows, strict=True)):
        bars, baseline = sparkline(terms[i])
        cards.append(
            Card(
                index=int(index),
                place=i + 1,
                rank=int(ranks[row]),
                row=int(row),
                influence=signed(float(influence[i]), decimals),
                error=f"{errors[i]:.{decimals}f}" if np.isfinite(errors[i]) else None,
                loss=three_digits(float(losses[i])),
                flagged=int(index) in flagged,
                shown=shown.get(int(index), Shown("none")),
                label=said.get(int(index), Said()).label,
                prediction=said.get(int(index), Said()).prediction,
                sparkline=bars,
                baseline=baseline,
            )
        )
    return cards


def sparkline(terms: Floats) -> tuple[list[Bar], float]:
    """A bar for each term, up from zero when it harms and down when it helps, scaled to the largest.

    More terms than fit are summed in neighbouring groups, so the bars still add up to the influence.

    Returns:
        The bars, and the y of zero.
    """
    if len(terms) > _MOST_BARS:
        terms = np.array([group.sum() for group in np.array_split(terms, _MOST_BARS)])
    low, high = min(0.0, float(terms.min())), max(0.0, float(terms.max()))
    span = (high - low) or 1.0
    baseline = _HEIGHT * high / span
    slot = _WIDTH / len(terms)
    bars = []
    for i, term in enumerate(terms):
        height = abs(float(term)) / span * _HEIGHT
        y = baseline - height if term > 0 else baseline
        bars.append(Bar((i + 0.14) * slot, y, 0.72 * slot, max(height, 0.4), bool(term > 0)))
    return bars, baseline
