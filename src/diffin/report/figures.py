"""The numbers behind the page's figures.

Each function returns a :class:`Figure`, or ``None`` where there is nothing to draw. Everything drawn is reduced to a
few thousand numbers here, however many samples were scored. Colours are names of CSS variables, which the page resolves
for light and dark.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from diffin.report.cards import Floats, Ints
from diffin.report.numbers import Unit, count, share, significant
from diffin.report.words import OF_A_QUERY, Words
from diffin.scoring.scores import Scores

BINS = 61
SCATTER_POINTS = 1500
CURVE_POINTS = 200
MOST_ROWS = 100_000

_DIAGONAL: dict[str, Any] = {"type": "scatter", "mode": "lines", "x": [0, 100], "y": [0, 100], "hoverinfo": "skip"}


@dataclass(frozen=True)
class Figure:
    """What plotly draws, and the same in a sentence for whoever does not see it.

    Attributes:
        caption: a sentence or two that give the figure's message in numbers.
    """

    traces: list[dict[str, Any]]
    layout: dict[str, Any]
    caption: str


def distribution(
    influence: Floats, unit: Unit, flagged_rows: Ints, flagged_as: str, words: Words = OF_A_QUERY
) -> Figure | None:
    """A histogram with logarithmic counts over a range that outliers do not stretch.

    It reaches 25 interquartile ranges beyond the quartiles at most; what lies outside is counted in the caption.
    """
    values = influence[np.isfinite(influence)] * unit.factor
    if not len(values):
        return None
    first, middle, third = (float(q) for q in np.quantile(values, [0.25, 0.5, 0.75]))
    reach = 25 * (third - first)
    low, high = max(float(values.min()), first - reach), min(float(values.max()), third + reach)
    if not high > low:
        low, high = low - 0.5 * (abs(low) or 1.0), high + 0.5 * (abs(high) or 1.0)
    edges = _edges(low, high)
    counts = np.histogram(values, edges)[0]
    centres, width = (edges[:-1] + edges[1:]) / 2, float(edges[1] - edges[0])
    traces: list[dict[str, Any]] = []
    for name, colour, chosen in ((words.lowers, "--help", centres < 0), (words.raises, "--harm", centres > 0)):
        shown = chosen & (counts > 0)
        traces.append(
            {
                "type": "bar",
                "name": name,
                "x": _rounded(centres[shown]),
                "y": counts[shown].tolist(),
                "width": width * 0.92,
                "marker": {"color": colour},
                "hovertemplate": f"about %{{x:.3~g}}{unit.label}: %{{y:,}} samples<extra></extra>",
            }
        )
    marked = influence[flagged_rows] * unit.factor
    if len(marked):
        among = np.histogram(marked[np.isfinite(marked)], edges)[0]
        shown = among > 0
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": f"of these: {flagged_as}",
                "x": _rounded(centres[shown]),
                "y": among[shown].tolist(),
                "marker": {"color": "--ink", "size": 5, "symbol": "diamond"},
                "hovertemplate": "%{y:,} of them<extra></extra>",
            }
        )
    below, above = int((values < low).sum()), int((values > high).sum())
    beyond = f" Beyond this range lie {below:,} to the left and {above:,} to the right." if below + above else ""
    harm, helps = (share(float(part.mean())) for part in (values > 0, values < 0))
    caption = (
        f"{harm} of the samples {words.raise_}, {helps} {words.lower}; half of them lie between {significant(first)} and "
        f"{significant(third)}, the median at {significant(middle)}{f' (in {unit.label[1:]})' if unit.label else ''}. "
        f"Counts are on a logarithmic scale.{beyond}"
    )
    layout = {
        "xaxis": {"title": {"text": f"influence {unit.label}".strip()}, "range": [float(edges[0]), float(edges[-1])]},
        "yaxis": {"title": {"text": "samples"}, "type": "log", "rangemode": "tozero", "dtick": 1},
        "barmode": "overlay",
    }
    return Figure(traces, layout, caption)


def courses(
    scores: Scores, typical: tuple[Floats, Floats, Floats] | None, harmful: Ints, helpful: Ints, unit: Unit,
    words: Words = OF_A_QUERY,
) -> Figure | None:  # fmt: skip
    """How the influence of the most extreme samples adds up over the checkpoints, beside what is typical.

    Args:
        scores: of the run.
        typical: the :func:`running_quantiles`.
        harmful: rows to draw, of the end of the largest influence.
        helpful: rows to draw, of the end of the smallest.
        unit: of the page.
        words: of the page.
    """
    terms, steps, indices = scores.terms, scores.steps, scores.index
    if terms.shape[1] < 2 or typical is None:
        return None
    x = list(steps)
    low, middle, high = typical
    band = {"type": "scatter", "mode": "lines", "x": x, "hoverinfo": "skip", "line": {"width": 0}}
    traces: list[dict[str, Any]] = [
        {**band, "y": _rounded(low * unit.factor), "showlegend": False},
        {
            **band,
            "y": _rounded(high * unit.factor),
            "fill": "tonexty",
            "fillcolor": "--band",
            "name": "9 of 10 samples",
        },
    ]
    for name, colour, rows in (
        (words.negative.called, "--help", helpful), (words.positive.called, "--harm", harmful)
    ):  # fmt: skip
        for place, row in enumerate(rows):
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "name": name,
                    "legendgroup": name,
                    "showlegend": place == 0,
                    "x": x,
                    "y": _rounded(np.cumsum(terms[row]) * unit.factor),
                    "line": {"color": colour, "width": 1.8},
                    "opacity": 1 - 0.13 * min(place, 5),
                    "hovertemplate": f"sample {int(indices[row])}, step %{{x:,}}: %{{y:+.3~g}}<extra></extra>",
                }
            )
    traces.append(
        {
            "type": "scatter",
            "mode": "lines",
            "name": "median",
            "x": x,
            "y": _rounded(middle * unit.factor),
            "line": {"color": "--ink", "width": 1.6, "dash": "dot"},
            "hovertemplate": "median, step %{x:,}: %{y:+.3~g}<extra></extra>",
        }
    )
    layout = {
        "xaxis": {"title": {"text": "training step"}},
        "yaxis": {"title": {"text": f"influence so far {unit.label}".strip()}},
    }
    largest = int(np.argmax(np.nanmedian(np.abs(_some(terms)), axis=0)))
    caption = (
        f"Each line adds up the {terms.shape[1]} terms of one sample and ends at its influence; the band holds 9 of 10 "
        f"samples. The term at step {int(steps[largest]):,} is the largest of a typical sample."
    )
    return Figure(traces, layout, caption)


def running_quantiles(terms: Floats) -> tuple[Floats, Floats, Floats]:
    """The 5 %, 50 % and 95 % points over samples of the influence so far, at every checkpoint. Float[m] each."""
    terms = _some(terms)
    running = np.cumsum(terms[np.isfinite(terms).all(axis=1)], axis=1)
    low, middle, high = np.quantile(running, [0.05, 0.5, 0.95], axis=0)
    return low, middle, high


def halves(terms: Floats, indices: Ints, words: Words = OF_A_QUERY) -> Figure | None:
    """The ranking by every other checkpoint against the ranking by the rest, as a scatter of percentiles."""
    known = np.flatnonzero(np.isfinite(terms).all(axis=1))
    if terms.shape[1] < 2 or len(known) < 10:
        return None
    one, other = (_percentiles(words.sign * terms[known, start::2].sum(axis=1)) for start in (0, 1))
    both = float((other[one > 90] > 90).mean())
    chosen = np.random.default_rng(0).permutation(len(known))[:SCATTER_POINTS]
    trace = {
        "type": "scatter",
        "mode": "markers",
        "x": _rounded(one[chosen]),
        "y": _rounded(other[chosen]),
        "text": [str(int(i)) for i in indices[known[chosen]]],
        "marker": {"color": "--mark", "size": 4, "opacity": 0.5},
        "hovertemplate": "sample %{text}<extra></extra>",
        "showlegend": False,
    }
    diagonal = {**_DIAGONAL, "showlegend": False, "line": {"color": "--ink", "width": 1.4, "dash": "dash"}}
    axis = {"range": [-2, 102], "tickvals": [0, 25, 50, 75, 100], "zeroline": False}
    layout = {
        "xaxis": {**axis, "title": {"text": "percentile by checkpoints 1, 3, 5\u2026"}},
        "yaxis": {**axis, "title": {"text": "percentile by checkpoints 2, 4, 6\u2026"}},
    }
    drawn = f" {len(chosen):,} of the samples are drawn." if len(chosen) < len(known) else ""
    caption = (
        f"Of the {words.tenth} by one half of the checkpoints, {share(both)} stand in the {words.tenth} "
        f"by the other half (10% if the ranking were noise). At 100 stands the {words.single}.{drawn}"
    )
    return Figure([trace, diagonal], layout, caption)


@dataclass(frozen=True)
class Found:
    """How many flagged samples stand in the first part of a ranking.

    Attributes:
        by: what the samples are ranked by.
        at: share of the flagged samples found when the first 10, 20 and 30 % are inspected.
    """

    by: str
    at: tuple[float, ...]


FOUND_AT = (0.1, 0.2, 0.3)


def search(influence: Floats, loss: Floats, flagged_rows: Ints, flagged_as: str) -> tuple[Figure, list[Found]] | None:
    """The share of the flagged samples found against the share inspected, largest first: by influence, loss, at random."""
    if not 0 < len(flagged_rows) < len(influence) or not np.isfinite(influence).any():
        return None
    is_flagged = np.zeros(len(influence), dtype=bool)
    is_flagged[flagged_rows] = True
    traces: list[dict[str, Any]] = [
        {**_DIAGONAL, "name": "random order", "line": {"color": "--muted", "width": 1.2, "dash": "dot"}}
    ]
    table = []
    for by, values, line in (
        ("mean loss", loss, {"color": "--muted", "width": 2}),
        ("influence", influence, {"color": "--harm", "width": 2.4}),
    ):
        if not np.isfinite(values).any():
            continue
        found = np.concatenate([[0.0], np.cumsum(is_flagged[np.argsort(-values, kind="stable")]) / is_flagged.sum()])
        at = np.unique(np.linspace(0, len(values), CURVE_POINTS).round().astype(int))
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": by,
                "x": _rounded(100 * at / len(values)),
                "y": _rounded(100 * found[at]),
                "line": line,
                "hovertemplate": f"%{{x:.1f}}% inspected by {by}: %{{y:.1f}}% found<extra></extra>",
            }
        )
        table.append(Found(by, tuple(float(found[round(part * len(values))]) for part in FOUND_AT)))
    said = "; ".join(f"by {row.by} {share(row.at[0])} and {share(row.at[1])}" for row in reversed(table))
    caption = (
        f"Of {count(len(flagged_rows), 'sample')} known to be \u201c{flagged_as}\u201d, the first 10% and 20% of the "
        f"ranking hold: {said}; by chance 10% and 20%."
    )
    layout = {
        "xaxis": {"title": {"text": "share inspected"}, "range": [0, 100], "ticksuffix": "%"},
        "yaxis": {"title": {"text": "share found"}, "range": [0, 102], "ticksuffix": "%"},
    }
    return Figure(traces, layout, caption), list(reversed(table))


def _some(terms: Floats) -> Floats:
    """All rows, or a seeded draw of them where there are more than a quantile needs."""
    if len(terms) <= MOST_ROWS:
        return terms
    return terms[np.sort(np.random.default_rng(0).choice(len(terms), MOST_ROWS, replace=False))]


def _edges(low: float, high: float) -> Floats:
    """Bins of one width with an edge at zero, so that no bin mixes harm and help."""
    width = (high - low) / BINS
    return np.arange(np.floor(low / width), np.ceil(high / width) + 1) * width


def _percentiles(values: Floats) -> Floats:
    ranks = np.empty(len(values))
    ranks[np.argsort(values, kind="stable")] = np.arange(len(values))
    return 100 * ranks / max(1, len(values) - 1)


def _rounded(values: Floats) -> list[float]:
    """As JSON numbers of five digits: a page does not need more, and would be twice the size."""
    return [float(f"{v:.5g}") for v in values]
