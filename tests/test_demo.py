"""The demo: what a new user sees first."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import yaml

import diffin
from diffin.evaluation import Truth, agreement
from test_cli import run

demo = pytest.importorskip("diffin.demo")
pytest.importorskip("mlxtend", reason='the demo needs pip install "diffin[demo]"')


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("demo")
    done = run("demo", "--quiet", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "diffin-demo", done.stdout


def test_a_tenth_of_the_labels_is_wrong_the_same_for_a_seed() -> None:
    data = demo.load(seed=5)
    assert data.flipped.sum() == 400
    np.testing.assert_array_equal(data.flipped, demo.load(seed=5).flipped)
    assert (demo.load(seed=6).flipped != data.flipped).any()


def test_wrong_labels_stand_at_the_top(shown: tuple[Path, str]) -> None:
    folder, text = shown
    scores = diffin.Scores.open(folder / "scores" / "unrolled")
    flags = demo.load().flipped
    assert demo.found(scores.influence, flags, 0.2) > 0.8
    assert f"{demo.found(scores.influence, flags, 0.2):.0%}" in text


def test_the_estimator_that_leads_agrees_best_with_the_truth(shown: tuple[Path, str]) -> None:
    folder, _ = shown
    truth = Truth.open(folder / "truth")
    found = {
        name: agreement(diffin.Scores.open(folder / "scores" / name).influence, truth, bootstrap=0).spearman
        for name in ("unrolled", "diffin", "tracin")
    }
    assert max(found, key=found.__getitem__) == "unrolled"
    assert found["unrolled"] > 0.8


def test_the_terminal_shows_phases_times_worst_samples_and_the_page(shown: tuple[Path, str]) -> None:
    folder, text = shown
    assert len(re.findall(r"^  \d+\.\d s", text, flags=re.MULTILINE)) == 7
    for index in diffin.Scores.open(folder / "scores" / "unrolled").most_harmful(10):
        assert f" {index} " in text
    assert str(folder / "report.html") in text
    assert str(folder / "evaluation.html") in text
    assert "Which digits harmed?" in (folder / "report.html").read_text()
    assert yaml.safe_load((folder / "run.yaml").read_text())["arguments"]["seed"] == 0
