"""The page of an evaluation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffin.evaluation import Truth, agreement
from diffin.report.agreement import Compared, noise, scatter, write_agreement


@pytest.fixture
def truth() -> Truth:
    replicas = np.random.default_rng(0).normal(size=(4, 30)) * 0.3 + np.linspace(-1, 2, 30)
    groups = tuple(np.arange(60, 90)[:, None])
    return Truth("loo", groups, replicas, order_seeds=(1, 2, 3, 4), metadata={"dataset_size": 90, "query_size": 7})


def compared(truth: Truth, name: str, noise: float) -> Compared:
    scores = np.random.default_rng(1).normal(size=90) * noise
    scores[60:] += truth.influence
    return Compared(name, scores * 1e-5, agreement(scores, truth), 1.5)


@pytest.fixture
def page_path(truth: Truth, tmp_path: Path) -> Path:
    entries = [compared(truth, "close", 0.1), compared(truth, "<b>far</b>", 2.0)]
    return write_agreement(truth, entries, tmp_path / "page.html", extra={"seed": 0})


def test_names_are_text_and_numbers_are_there(page_path: Path, truth: Truth) -> None:
    html = page_path.read_text(encoding="utf-8")
    assert "<b>far</b>" not in html
    assert "&lt;b&gt;far&lt;/b&gt;" in html
    found = compared(truth, "close", 0.1).agreement
    for words in (f"{found.spearman:.3f}", f"{found.ceiling:.3f}", f"{found.bound:.3f}", "Expected over 4 orders"):
        assert words in html


def test_a_scatter_has_the_truth_on_x_and_the_line_of_equality_in_both_units(truth: Truth) -> None:
    estimate = truth.influence * 1e-5
    figure = scatter(truth, estimate)
    assert figure is not None
    points, identity = figure.traces
    np.testing.assert_allclose(points["x"], truth.influence, rtol=1e-4)
    np.testing.assert_allclose(points["y"], estimate * 1e6, rtol=1e-4)
    np.testing.assert_allclose(np.array(identity["y"]), np.array(identity["x"]) * 1e6, rtol=1e-4)
    assert points["text"][0] == "sample 60"
    assert "100% have the sign" in figure.caption


def test_what_failed_is_not_drawn_and_nothing_at_all_is_no_figure(truth: Truth) -> None:
    estimate = truth.influence.copy()
    estimate[:10] = np.nan
    figure = scatter(truth, estimate)
    assert figure is not None
    assert len(figure.traces[0]["x"]) == 20
    json.dumps(figure.traces, allow_nan=False)
    assert scatter(truth, np.full(30, np.nan)) is None


def test_the_noise_of_a_truth_is_said_in_words(truth: Truth) -> None:
    assert "Ceiling 0." in noise(truth)
    one = Truth("loo", truth.groups, truth.replicas[:1])
    assert "this very run" in noise(one)
    assert "two or more" in noise(Truth("loo", truth.groups, truth.replicas[:1], order_seeds=(1,)))


@pytest.mark.browser
def test_the_page_draws_in_a_browser(page_path: Path, open_page: Callable[..., Any]) -> None:
    page = open_page(page_path)
    assert page.locator(".scatterlayer .point").count() == 2 * 30
    assert page.locator("#agreement tbody tr").count() == 2
