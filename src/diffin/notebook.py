"""What a notebook shows of a result: a table and a picture in plain HTML, with no script, no style sheet and no network."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from diffin.report.method import Method
from diffin.report.numbers import significant
from diffin.scoring.columns import Floats

if TYPE_CHECKING:
    from diffin.actions.clean import Suspects
    from diffin.scoring import Scores

# Read on white and on black: a notebook does not say which of them it has.
HARM, HELP, PLAIN = "#c8622f", "#2f82a8", "#808890"
_WIDTH, _HEIGHT, _SIDE = 430, 84, 21
_SCORES, _DOUBTS = 5, 10
_MOST_KEYS = 100_000


def ranking(scores: Scores) -> str:
    """Both ends of a ranking, and how influences are spread. Keys stand beside indices, unless they are very many."""
    keys = scores.keys if len(scores) <= _MOST_KEYS else None
    influence = scores.influence

    def cells(index: int) -> list[str]:
        return [str(index) if keys is None else f"{index} ({keys[index]})", f"{influence[index]:+.3e}"]

    own = Method.of(scores.metadata, [], {}).kind == "self-influence"
    first, last = ("least needed", "most needed") if own else ("most harmful", "most helpful")
    ends = zip(scores.most_harmful(_SCORES).tolist(), scores.most_helpful(_SCORES).tolist(), strict=True)
    rows = [[*cells(worst), *cells(best)] for worst, best in ends]
    shown = table([first, "influence", last, "influence"], rows)
    sign = paragraph(
        f"Influence on {'the own loss of a sample' if own else 'the query'}: negative helps, positive harms."
    )
    return "".join([paragraph(repr(scores)), shown, around_zero(influence), sign])


def doubts(suspects: Suspects) -> str:
    """The most doubtful labels, and how the probabilities of a wrong one are spread."""
    rows = suspects.rows
    shown = [
        [
            str(index),
            str(suspects.given[row]),
            f"{suspects.probability[row]:.1%}",
            str(suspects.suggested[row]),
            f"{suspects.suggestion_probability[row]:.1%}",
        ]
        for index in suspects.suspects()[:_DOUBTS].tolist()
        for row in [rows[index]]
    ]
    headings = ["sample", "given", "wrong with", "rather", "with"]
    return "".join([paragraph(repr(suspects)), table(headings, shown), shares(suspects.probability)])


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table. Whatever the texts are, they are shown as text.

    Args:
        headings: of the columns.
        rows: of cells.
    """
    style = ' style="text-align:right"'
    head = "".join(f"<th{style}>{html.escape(text)}</th>" for text in headings)
    body = "".join("<tr>" + "".join(f"<td{style}>{html.escape(text)}</td>" for text in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def paragraph(text: str) -> str:
    """A line of text, shown as text."""
    return f"<p>{html.escape(text)}</p>"


def around_zero(values: Floats) -> str:
    """How influences are spread, as SVG: helping ones on the left, harming ones on the right.

    The 99 % nearest to zero are drawn to scale, the others at the ends; the height of a bar is the square root of a count.

    Args:
        values: Float64[ndarray, "N"], NaN for a failed sample; without a finite one, nothing is drawn.
    """
    known = values[np.isfinite(values)]
    if len(known) == 0:
        return ""
    largest = float(np.quantile(np.abs(known), 0.99)) or float(np.abs(known).max()) or 1.0
    edges = np.linspace(-largest, largest, 2 * _SIDE + 2)
    counts = np.histogram(np.clip(known, -largest, largest), edges)[0]
    colours = [HELP] * _SIDE + [PLAIN] + [HARM] * _SIDE
    less, more = ("\u2264 " if known.min() < -largest else ""), ("\u2265 " if known.max() > largest else "")
    ends = (f"{less}{-largest:+.1e}", "0", f"{more}{largest:+.1e}")
    said = f"{len(known):,} influences between {significant(float(known.min()))} and {significant(float(known.max()))}"
    return _bars(counts, colours, ends, said)


def shares(values: Floats) -> str:
    """How probabilities are spread from 0 to 1, as SVG; the height of a bar is the square root of a count.

    Args:
        values: Float64[ndarray, "N"], in [0, 1] or NaN; without a finite one, nothing is drawn.
    """
    known = values[np.isfinite(values)]
    if len(known) == 0:
        return ""
    counts = np.histogram(known, np.linspace(0, 1, 2 * _SIDE + 1))[0]
    colours = [PLAIN] * _SIDE + [HARM] * _SIDE
    return _bars(counts, colours, ("0", "0.5", "1"), f"{len(known):,} probabilities of a wrong label")


def _bars(counts: npt.NDArray[np.int64], colours: Sequence[str], ends: tuple[str, str, str], said: str) -> str:
    heights = np.sqrt(counts / counts.max()) * (_HEIGHT - 20)
    width = _WIDTH / len(counts)
    bars = "".join(
        f'<rect x="{number * width:.1f}" y="{_HEIGHT - 18 - height:.1f}" width="{width - 1:.1f}" height="{height:.1f}" '
        f'fill="{colour}"><title>{count:,}</title></rect>'
        for number, (height, colour, count) in enumerate(zip(heights, colours, counts, strict=True))
        if count
    )
    places = ((0, "start"), (_WIDTH / 2, "middle"), (_WIDTH, "end"))
    labels = "".join(
        f'<text x="{x:g}" y="{_HEIGHT - 4}" text-anchor="{anchor}" fill="{PLAIN}" font-size="11">{html.escape(text)}</text>'
        for (x, anchor), text in zip(places, ends, strict=True)
    )
    axis = f'<line x1="0" x2="{_WIDTH}" y1="{_HEIGHT - 17.5}" y2="{_HEIGHT - 17.5}" stroke="{PLAIN}"/>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'role="img" aria-label="{html.escape(said)}">{bars}{axis}{labels}</svg>'
    )
