"""The page of self-influence speaks of the sample itself: which samples depend on having been trained on."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from handmade import make_scores

from diffin.report import write_report
from diffin.scoring.scores import Scores


def of_itself(terms: Any, losses: Any = None, of: str = "unrolled") -> Scores:
    scores = make_scores(terms, losses, kind="parts" if of == "unrolled" else "draws")
    metadata = {"estimator": {"name": "self-influence", "of": of, "rank": 64}, "query_size": None, "total_steps": 100}
    manifest = scores._manifest
    return Scores(scores._parts, replace(manifest, probes={**manifest.probes, "metadata": metadata}))


def read(path: Path) -> tuple[str, Any]:
    """The page without scripts and style, and its data."""
    html = path.read_text(encoding="utf-8")
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', html)
    assert match is not None
    page = re.sub(r"<(script|style)>.*?</\1>", "", html, flags=re.DOTALL)
    return " ".join(re.sub(r'<script type="application/json".*?</script>', "", page).split()), json.loads(match[1])


@pytest.mark.parametrize("of", ["unrolled", "tracin"])
def test_nothing_on_it_harms_or_helps_a_query(of: str, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    page, data = read(write_report(of_itself(-generator.random((60, 4)), np.ones(60), of), tmp_path, flagged=range(6)))
    assert "did to its own loss" in page
    assert f"estimated by {'Unrolled' if of == 'unrolled' else 'TracIn'}" in page
    said = re.sub(r"<pre.*?</pre>", "", page) + json.dumps(data)  # but for the metadata as they are
    for word in ("armful", "elpful", "harms", "helps", "query"):
        assert word not in said, said[max(0, said.index(word) - 80) :][:160]


def test_the_ranking_begins_with_what_depends_most_on_itself(tmp_path: Path) -> None:
    terms = [[-1.0, -1], [-4, -5], [-0.1, 0], [0.5, 0.1], [np.nan, 0], [-3, 0]]
    page, data = read(write_report(of_itself(terms), tmp_path, top=2))
    assert list(data["cards"]) == ["most", "least"]
    assert [card["index"] for card in data["cards"]["most"]] == [1, 5]
    assert [card["index"] for card in data["cards"]["least"]] == [3, 2]
    assert page.index("Depend most on themselves") < page.index("Depend least on themselves")
    assert "2 of 4 samples that lowered their own loss" in page
    assert "2 of 5 samples in all" in page
    ranks = {side: dict(map(tuple, cards[0]["facts"]))["rank"] for side, cards in data["cards"].items()}
    assert ranks == {side: f"{rank} of 5, most dependent on itself first" for side, rank in (("most", 1), ("least", 5))}


def test_no_sample_stands_at_both_ends(tmp_path: Path) -> None:
    _, data = read(write_report(of_itself([[-1.0, -1], [-4, -5], [-3, 0]]), tmp_path, top=2))
    assert [[card["index"] for card in cards] for cards in data["cards"].values()] == [[1, 2], [0]]


def test_known_bad_samples_are_sought_from_the_end_that_depends_most(tmp_path: Path) -> None:
    terms = -np.linspace(1, 2, 20)[:, None] * np.ones(4)
    page, _ = read(write_report(of_itself(terms), tmp_path, flagged=[18, 19]))
    assert re.search(r"by influence</th><td>100%", page)
