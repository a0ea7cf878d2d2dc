"""The certificate of a deletion, as a page."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffin.actions.delete import Certificate, Certified, Deletion, Measured
from diffin.report.certificate import verdict, write_certificate

ATTACK = "</script><script>window.attacked = true</script><img src=x onerror='window.attacked = true'>"


def model(loss: float, *, closed: float | None, attack: float) -> Certified:
    on = {
        "forgotten": Measured(120, loss, 0.8),
        "kept": Measured(1380, 0.1, 0.97),
        "test": Measured(500, 0.4, 0.91),
    }
    return Certified(on, attack, attack + 0.1, 1.5, 0.7, 0.9, closed)


@pytest.fixture
def deletion() -> Deletion:
    models = {
        "original": model(0.1, closed=0.0, attack=0.61),
        "deleted": model(0.51, closed=0.93, attack=0.52),
        "retrained": model(0.54, closed=1.0, attack=0.5),
    }
    regime = {
        "fractions": [0.25, 0.5, 1.0], "predicted": [0.15, 0.25, 0.5], "actual": [0.16, 0.26, 0.51],
        "kept_predicted": [0.1, 0.1, 0.1], "kept_actual": [0.1, 0.1, 0.1], "kept_before": 0.1, "slip": 0.0, "allowed": 0.2,
        "holds": True,
    }  # fmt: skip
    settings = {"samples": 120, "dataset_size": 1500, "estimator": {"name": "linearised"}, "forced": False}
    certificate = Certificate(models, regime, {"deletion": 2.0, "retraining": 8.0}, settings)
    return Deletion({"w": torch.zeros(2)}, np.arange(120), certificate)


@pytest.fixture
def page_path(deletion: Deletion, tmp_path: Path) -> Path:
    return write_certificate(deletion, tmp_path / "page.html", extra={"seed": 0})


def test_the_verdict_says_how_much_was_closed(deletion: Deletion) -> None:
    assert "from 0.1 to 0.51" in verdict(deletion.certificate)
    assert "93% of the difference" in verdict(deletion.certificate)
    alone = {n: m for n, m in deletion.certificate.models.items() if n != "retrained"}
    assert "trained without" not in verdict(replace(deletion.certificate, models=alone))


def test_without_a_test_set_or_a_retrained_model_the_page_still_stands(deletion: Deletion, tmp_path: Path) -> None:
    def less(of: Certified) -> Certified:
        on = {n: replace(m, accuracy=None) for n, m in of.on.items() if n != "test"}
        return Certified(on, distance=of.distance)

    models = {n: less(m) for n, m in deletion.certificate.models.items() if n != "retrained"}
    certificate = replace(deletion.certificate, models=models, seconds={"deletion": 1.0})
    html = write_certificate(replace(deletion, certificate=certificate), tmp_path / "page.html").read_text()
    assert 'id="attacks"' not in html
    assert "accuracy, " not in html
    assert "Attacks need a test set" in html


def test_a_broken_model_is_called_broken(deletion: Deletion, tmp_path: Path) -> None:
    certificate = replace(deletion.certificate, regime={**deletion.certificate.regime, "holds": False, "slip": None})
    html = write_certificate(replace(deletion, certificate=certificate), tmp_path / "page.html").read_text()
    assert 'id="broken"' in html


@pytest.mark.browser
def test_the_page_draws_in_a_browser(page_path: Path, open_page: Callable[..., Any]) -> None:
    page = open_page(page_path)
    assert page.locator("#plot-losses .bars .point").count() == 9
    assert page.locator("#plot-regime .scatterlayer .point").count() == 8
    assert page.locator("#models tbody tr").count() == 6
    assert page.locator("#attacks tbody tr").all_inner_texts()[0].split() == ["by", "loss", "0.610", "0.520", "0.500"]
    assert page.locator("#samples span").count() == 60
    assert "and 60 others" in page.locator("#samples").inner_text()
    assert page.locator("#broken").count() == 0


@pytest.mark.browser
def test_nothing_scrolls_sideways_and_figures_follow_the_mode(page_path: Path, open_page: Callable[..., Any]) -> None:
    page = open_page(page_path, color_scheme="dark")
    for width in (1280, 768, 360):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    colour = "document.querySelector('#plot-losses .xtick text').style.fill"
    dark = page.evaluate(colour)
    page.emulate_media(color_scheme="light")
    deadline = time.monotonic() + 20
    while page.evaluate(colour) == dark:
        assert time.monotonic() < deadline
        page.wait_for_timeout(20)


@pytest.mark.browser
def test_markup_stays_text(deletion: Deletion, open_page: Callable[..., Any], tmp_path: Path) -> None:
    page = open_page(write_certificate(deletion, tmp_path / "page.html", title=ATTACK, extra={ATTACK: ATTACK}))
    assert page.locator("h1").inner_text() == ATTACK
    assert page.evaluate("window.attacked") is None
