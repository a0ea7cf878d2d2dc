"""Writing the page: everything a person needs to judge a ranking, in one file that opens anywhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from diffin.errors import ScoringError
from diffin.problem import Problem
from diffin.report import figures
from diffin.report.cards import Card, Ints, Side, make_cards
from diffin.report.dependencies import require
from diffin.report.html import write_html
from diffin.report.method import Method
from diffin.report.numbers import Unit
from diffin.report.predictions import Said, describe
from diffin.report.reading import show_samples
from diffin.report.samples import Shown
from diffin.report.words import words_for
from diffin.scoring.columns import Terms
from diffin.scoring.scores import Scores

DRAWN_COURSES = 5
LISTED_FAILURES = 60


def write_report(
    scores: Scores,
    path: str | Path,
    *,
    problem: Problem | None = None,
    state: Mapping[str, Tensor] | None = None,
    flagged: Iterable[int] | None = None,
    title: str = "Training influence",
    extra: Mapping[str, Any] | None = None,
    flagged_as: str = "flagged",
    top: int = 24,
) -> Path:
    """Write scores as one HTML page: no other file, no network.

    Positive influence harms, negative helps, as everywhere.

    Args:
        scores: a :class:`diffin.Scores`.
        path: the file to write; an existing folder gets a ``report.html``. Replaced when complete.
        problem: what was scored; its training data give the pictures, texts or rows, and its task the labels. Without
            it the page shows numbers only.
        state: parameters and buffers of the final model, for predictions; without it there are none.
        flagged: indices of samples known to be bad, e.g. mislabelled on purpose: they get a badge, and the page shows
            how many of them the ranking finds, and how many a ranking by loss does.
        title: the headline.
        extra: whatever else is to stand under "how it was computed": versions, seed, git revision. May be nested.
        flagged_as: what the badge says.
        top: how many samples to show of either end.

    Returns:
        The path written to.

    Raises:
        MissingDependencyError: the ``report`` extra is not installed.
        DatasetError: the training data of ``problem`` lack a sample that the scores refer to.
        TrajectoryError: ``state`` does not fit the model.
        ProblemError: ``problem.show`` fails.
        ScoringError: ``top`` is below 1.
    """
    if top < 1:
        raise ScoringError(f"top={top}; pass how many samples to show of either end of the ranking, 1 or more")
    for package in ("jinja2", "plotly.offline"):
        require(package)  # before the work rather than after it
    content = _content(scores, problem, state, {int(i) for i in flagged or ()}, flagged_as, top, extra or {})
    payload = content.pop("payload")
    path = Path(path)
    path = path / "report.html" if path.is_dir() else path
    return write_html(path, "page.html", {**content, "title": title, "flagged_as": flagged_as}, payload)


def _content(
    scores: Scores,
    problem: Problem | None,
    state: Mapping[str, Tensor] | None,
    flagged: set[int],
    flagged_as: str,
    top: int,
    extra: Mapping[str, Any],
) -> dict[str, Any]:
    """What the template asks for."""
    influence, steps = scores.influence, np.asarray(scores.steps)
    method = Method.of(scores.metadata, [int(s) for s in steps], extra)
    words = words_for(method.kind)
    helpful = Side.helpful(scores, top)
    harmful = Side.harmful(scores, top) if words.sign > 0 else Side.least(scores, top, len(helpful.rows))
    unit = Unit.of(influence[np.concatenate([harmful.rows, helpful.rows])])
    chosen = [int(i) for i in (*harmful.indices, *helpful.indices)]
    shown, said, trouble = _look_at(problem, chosen, state)
    ranks = _ranks(words.sign * influence)
    ends = [(words.positive, harmful), (words.negative, helpful)][:: words.sign]
    sides = [(end, side.total, make_cards(scores, side, ranks, unit, flagged, shown, said)) for end, side in ends]
    flagged_rows = np.flatnonzero(np.isin(scores.index, np.fromiter(flagged, dtype=np.int64, count=len(flagged))))
    terms = scores.terms
    kind: Terms = scores.metadata.get("terms", "draws")
    # Trainings stand beside each other: they have no course.
    has_course = kind != "runs" and len(harmful.rows) + len(helpful.rows) > 0
    typical = figures.running_quantiles(terms) if has_course else None
    found = figures.search(words.sign * influence, scores.loss, flagged_rows, flagged_as)
    drawn = {
        "distribution": figures.distribution(influence, unit, flagged_rows, flagged_as, words),
        "courses": figures.courses(
            scores, typical, harmful.rows[:DRAWN_COURSES], helpful.rows[:DRAWN_COURSES], unit, words
        ),
        "halves": figures.halves(terms, scores.index, words) if kind == "draws" else None,
        "search": found[0] if found else None,
    }
    ranked = int(np.isfinite(influence).sum())
    failed = [int(i) for i in scores.failed]
    stability = scores.stability if len(steps) > 1 and ranked > 1 else None
    return {
        "samples": len(scores),
        "checkpoints": len(steps),
        "kind": kind,
        "part": {"draws": "checkpoint", "parts": "part of the training", "runs": "training"}[kind],
        "has_errors": bool(np.isfinite(scores.standard_error).any()),
        "unit": unit.label,
        "sides": sides,
        "words": words,
        "signs": [
            (label, colour, int(of_sign.sum()))
            for label, colour, of_sign in zip(
                words.facts, ("harm", "help"), (influence > 0, influence < 0), strict=True
            )
        ][:: words.sign],
        "wide": any(card.shown.kind in ("text", "row") for _, _, cards in sides for card in cards),
        "figures": drawn,
        "found": found[1] if found else [],
        "found_at": figures.FOUND_AT,
        "reliability": None if stability is None else stability.reliability,
        "stability": stability.sentence() if stability is not None else "",
        "failed": failed[:LISTED_FAILURES],
        "failures": len(influence) - ranked,
        "trouble": trouble,
        "method": method,
        "payload": {
            "unit": unit.label,
            "steps": [int(s) for s in steps],
            "part": "training" if kind == "runs" else "step",
            "median": _finite(typical[1] * unit.factor) if typical else [],
            "called": {end.name: end.called for end, _, _ in sides},
            "cards": {
                end.name: [_card_data(scores, card, unit, f"{ranked:,}, {words.first}") for card in cards]
                for end, _, cards in sides
            },
            "figures": {name: {"traces": f.traces, "layout": f.layout} for name, f in drawn.items() if f is not None},
        },
    }


def _look_at(
    problem: Problem | None, indices: Sequence[int], state: Mapping[str, Tensor] | None
) -> tuple[dict[int, Shown], dict[int, Said], str]:
    """What the samples look like, what is said of them, and why nothing is said, if so."""
    if problem is None:
        return {}, {}, ""
    said, trouble = describe(problem, indices, state)
    return show_samples(problem, indices), said, trouble


def _card_data(scores: Scores, card: Card, unit: Unit, ranked: str) -> dict[str, Any]:
    """What the detail view of a card needs; all of it numbers, or text that is shown as text."""
    error = float(scores.standard_error[card.row]) * unit.factor
    return {
        "index": card.index,
        "terms": _finite(scores.terms[card.row] * unit.factor),
        "error": float(f"{error:.6g}") if np.isfinite(error) else None,
        "facts": [
            ["influence", f"{card.measured} {unit.label}".strip()],
            ["rank", f"{card.rank:,} of {ranked}"],
            ["mean loss", card.loss],
            *([["label", card.label]] if card.label else []),
            *([["model says", card.prediction]] if card.prediction else []),
        ],
    }


def _ranks(influence: Any) -> Ints:
    """1 for the largest; samples without influence come last."""
    ranks = np.empty(len(influence), dtype=np.int64)
    ranks[np.argsort(-influence, kind="stable")] = np.arange(1, len(influence) + 1)
    return ranks


def _finite(values: Any) -> list[float | None]:
    return [float(f"{v:.6g}") if np.isfinite(v) else None for v in values]
