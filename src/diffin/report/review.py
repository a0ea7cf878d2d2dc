"""A page on which a person decides, sample by sample, whether a label is wrong."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diffin.errors import DatasetError
from diffin.problem import Problem
from diffin.report.html import write_html
from diffin.report.numbers import share
from diffin.report.reading import show_samples
from diffin.report.samples import Shown


@dataclass(frozen=True)
class Doubt:
    """A sample whose label is doubted.

    Attributes:
        index: position in the training set.
        given: the class it is labelled as.
        suggested: the class it seems to be, or ``None``.
        probability: that the given label is wrong.
        evidence: what speaks for it, as pairs of a name and words.
    """

    index: int
    given: int
    suggested: int | None
    probability: float
    evidence: tuple[tuple[str, str], ...] = ()


def write_review(
    doubts: Sequence[Doubt],
    path: str | Path,
    *,
    problem: Problem | None = None,
    classes: Sequence[str],
    samples: int,
    title: str = "Are these labels right?",
) -> Path:
    """Write the page: one HTML file that loads nothing, and keeps decisions in the browser until they are exported.

    The file that it exports is read by :func:`diffin.actions.clean.read_decisions`.

    Args:
        doubts: what to decide about, most doubtful first.
        path: the file to write.
        problem: its training data give pictures, texts or rows.
        classes: names by class number.
        samples: how many the training set has.
        title: the headline.

    Raises:
        MissingDependencyError: the ``report`` extra is not installed.
        DatasetError: there is nothing to decide about, or the training data lack a sample.
        ProblemError: ``problem.show`` fails.
    """
    if not doubts:
        raise DatasetError("no label is doubted, so there is nothing to review; pass a lower threshold")
    shown = {} if problem is None else show_samples(problem, [doubt.index for doubt in doubts])
    entries = [
        {
            "index": doubt.index,
            "given": doubt.given,
            "suggested": doubt.suggested,
            "probability": share(doubt.probability),
            "evidence": [list(pair) for pair in doubt.evidence],
        }
        for doubt in doubts
    ]
    key = hashlib.sha256(json.dumps([entries, list(classes)]).encode()).hexdigest()[:16]
    content = {
        "title": title,
        "doubts": [(doubt, shown.get(doubt.index, Shown("none"))) for doubt in doubts],
        "classes": list(classes),
        "samples": samples,
        "wide": any(one.kind in ("text", "row") for one in shown.values()),
    }
    payload = {"doubts": entries, "classes": list(classes), "samples": samples, "key": key}
    return write_html(Path(path), "review.html", content, payload, own="review")
