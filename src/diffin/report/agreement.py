"""The page of an evaluation: how well estimates agree with a truth, in one table and a scatter plot each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffin.evaluation.metrics import Agreement, reliability
from diffin.evaluation.truth import Floats, Truth
from diffin.report.figures import SCATTER_POINTS, Figure
from diffin.report.html import write_html
from diffin.report.method import flat
from diffin.report.numbers import Unit

_EDGE = 0.05
_SHOWN = {
    "steps": "Steps of a training",
    "seconds": "Seconds for the truth",
    "method": "Trainings executed",
    "at_once": "At once",
    "reason": "Why not stacked",
}


@dataclass(frozen=True)
class Compared:
    """An estimate beside the truth.

    Attributes:
        name: of the estimator.
        scores: Float64[ndarray, "N"], of every sample of the training set.
        agreement: with the truth.
        seconds: what the scores took; ``None`` if that is not known.
    """

    name: str
    scores: Floats
    agreement: Agreement
    seconds: float | None = None


@dataclass(frozen=True)
class _Row:
    name: str
    spearman: str
    spearman_interval: str
    pearson: str
    pearson_interval: str
    left_out: str
    seconds: str
    note: str
    figure: Figure | None


def write_agreement(
    truth: Truth,
    compared: Sequence[Compared],
    path: str | Path,
    *,
    title: str = "Agreement with the truth",
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write an evaluation as one HTML page: no other file, no network.

    Args:
        truth: what was compared with.
        compared: the estimates, under names that differ.
        path: the file to write; replaced when complete.
        title: the headline.
        extra: whatever else is to stand under "how it was computed".

    Raises:
        MissingDependencyError: the ``report`` extra is not installed.
    """
    rows = [_row(truth, entry) for entry in compared]
    ceiling = reliability(truth)
    known = truth.metadata
    method = [(name, str(known[key])) for key, name in _SHOWN.items() if known.get(key) not in (None, "")]
    method += [("Orders drawn by seeds", ", ".join(map(str, truth.order_seeds)))] if truth.order_seeds else []
    method += flat(extra or {})
    content = {
        "title": title,
        "truth": truth.sentence(),
        "compared": len(truth.groups),
        "samples": known.get("dataset_size", 0),
        "query_size": known.get("query_size"),
        "ceiling": coefficient(ceiling),
        "bound": coefficient(None if ceiling is None else ceiling**0.5),
        "noise": noise(truth),
        "rows": rows,
        "method": method,
    }
    figures = {
        row.name: {"traces": row.figure.traces, "layout": row.figure.layout} for row in rows if row.figure is not None
    }
    return write_html(Path(path), "agreement.html", content, {"figures": figures})


def noise(truth: Truth) -> str:
    """How noisy the truth is, for a person."""
    ceiling = reliability(truth)
    if ceiling is None:
        if len(truth.order_seeds) == 1:
            return "With one order, how noisy this truth is cannot be told: average over two or more."
        return "This truth is about this very run, and exact for it; another order of the data would give another one."
    count = len(truth.order_seeds)
    return (
        f"Ceiling {ceiling:.2f}: another truth over {count} orders would agree with this one to that Spearman correlation. "
        f"The most that an estimate can be expected to reach is its root, the bound, {ceiling**0.5:.2f}."
    )


def coefficient(value: float | None) -> str:
    """Three decimals; empty where there is none."""
    return "" if value is None else f"{value:.3f}".replace("-", "\u2212")


def interval(bounds: tuple[float, float] | None) -> str:
    """Two bounds of two decimals; empty where there are none."""
    return "" if bounds is None else f"{bounds[0]:.2f} to {bounds[1]:.2f}".replace("-", "\u2212")


def scatter(truth: Truth, estimate: Floats) -> Figure | None:
    """The estimate against the truth, with the lines of zero and the one on which both are equal.

    Args:
        truth: of G groups.
        estimate: Float64[ndarray, "G"].
    """
    actual = truth.influence
    known = np.flatnonzero(np.isfinite(actual) & np.isfinite(estimate))
    if not len(known):
        return None
    x_unit, y_unit = Unit.of(actual[known]), Unit.of(estimate[known])
    chosen = known if len(known) <= SCATTER_POINTS else np.sort(_some(known))
    x, y = actual[chosen] * x_unit.factor, estimate[chosen] * y_unit.factor
    low, high = float(x.min()), float(x.max())
    reach = _EDGE * ((high - low) or abs(high) or 1.0)
    ends = np.array([low - reach, high + reach])
    heights = ends / x_unit.factor * y_unit.factor
    span = max(float(np.ptp(y)), 1e-12)
    points = {
        "type": "scatter",
        "mode": "markers",
        "x": _digits(x),
        "y": _digits(y),
        "text": [_label(truth, int(number)) for number in chosen],
        "marker": {"color": "--mark", "size": 5, "opacity": 0.6},
        "hovertemplate": "%{text}<br>truth %{x:+.3~g}, estimate %{y:+.3~g}<extra></extra>",
        "showlegend": False,
    }
    identity = {
        "type": "scatter",
        "mode": "lines",
        "x": _digits(ends),
        "y": _digits(heights),
        "hoverinfo": "skip",
        "showlegend": False,
        "line": {"color": "--ink", "width": 1.4, "dash": "dash"},
    }
    layout = {
        "xaxis": {"title": {"text": f"truth {x_unit.label}".strip()}, "range": _digits(ends)},
        # By the points: where the sizes differ, the line of equality is steep or flat and would hide them.
        "yaxis": {
            "title": {"text": f"estimate {y_unit.label}".strip()},
            "range": _digits(np.array([y.min() - _EDGE * span, y.max() + _EDGE * span])),
        },
    }
    same = float((np.sign(actual[known]) == np.sign(estimate[known])).mean())
    drawn = f" {len(chosen):,} of them are drawn." if len(chosen) < len(known) else ""
    caption = (
        f"{len(known):,} points; {same:.0%} have the sign of the truth. On the dashed line, estimate and truth are "
        f"equal.{drawn}"
    )
    return Figure([points, identity], layout, caption)


def _row(truth: Truth, compared: Compared) -> _Row:
    found = compared.agreement
    return _Row(
        name=compared.name,
        spearman=coefficient(found.spearman),
        spearman_interval=interval(found.spearman_interval),
        pearson=coefficient(found.pearson),
        pearson_interval=interval(found.pearson_interval),
        left_out=f"{found.left_out:,}",
        seconds="" if compared.seconds is None else f"{compared.seconds:,.1f}",
        note=found.note,
        figure=scatter(truth, truth.predicted(compared.scores)),
    )


def _label(truth: Truth, number: int) -> str:
    if truth.kind in ("loo", "expected"):
        return f"sample {int(truth.groups[number][0])}"
    return f"{'subset' if truth.kind == 'lds' else 'group'} {number}"


def _some(known: Any) -> Any:
    return np.random.default_rng(0).choice(known, SCATTER_POINTS, replace=False)


def _digits(values: Floats) -> list[float]:
    return [float(f"{v:.5g}") for v in values]
