"""``diffin evaluate``, run as a user runs it, and its page."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import TensorDataset

import diffin
from diffin.cli import main
from diffin.evaluation import Truth
from training import record

PROBLEM = '''
"""Noise, and a model small enough to train in a blink."""
import torch
from torch import nn
from torch.utils.data import TensorDataset

import diffin
from diffin.tasks import Classification

generator = torch.Generator().manual_seed(0)
inputs = torch.randn(60, 6, generator=generator)
labels = (inputs[:, 0] + 0.3 * torch.randn(60, generator=generator) > 0).long()
train, query = TensorDataset(inputs[:40], labels[:40]), TensorDataset(inputs[40:], labels[40:])


def problem():
    torch.manual_seed(0)
    return diffin.Problem(Classification(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))), train, query)
'''


def in_a_process(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "diffin", *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": "160", "OMP_NUM_THREADS": "1", "TERM": "dumb", "NO_COLOR": "1"}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, env=environment, check=False)


@pytest.fixture
def run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """``run(*arguments)`` in this process, for speed: exit code, and what was printed with its lines joined."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["diffin", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), " ".join(printed.out.split()), " ".join(printed.err.split())

    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A problem file beside a recorded run, its scores, and an evaluation."""
    path = tmp_path_factory.mktemp("evaluate")
    (path / "problem.py").write_text(PROBLEM)
    asked = diffin.load_problem(path / "problem.py")
    assert isinstance(asked.train, TensorDataset)
    trajectory = record(path / "run", asked.task, asked.train, steps=40, batch_size=8, learning_rate=0.5)
    diffin.score(
        asked.task, trajectory, asked.train, query=asked.query, estimator=diffin.TracIn(), output=path / "mine",
        progress=False,
    )  # fmt: skip
    done = in_a_process(
        "evaluate", "problem.py", "run", "-o", "loo", "--samples", "25", "-s", "mine", "-e", "diffin", cwd=path
    )
    assert done.returncode == 0, done.stderr
    (path / "printed").write_text(done.stdout)
    return path


def test_the_table_says_how_each_estimate_agrees_and_with_what(folder: Path) -> None:
    printed = (folder / "printed").read_text()
    for words in (
        "mine",
        "diffin",
        "Spearman",
        "This run: trained again without each of 25 samples",
        "evaluation.html",
    ):
        assert words in printed
    truth = Truth.open(folder / "loo" / "truth")
    assert len(truth.groups) == 25
    written = json.loads((folder / "loo" / "evaluation.json").read_text())
    assert set(written["estimators"]) == {"mine", "diffin"}
    found = written["estimators"]["mine"]
    low, high = found["spearman_interval"]
    assert -1 <= low <= found["spearman"] <= high <= 1
    assert f"{found['spearman']:.3f}" in printed
    assert written["estimators"]["diffin"]["seconds"] > 0


def test_given_again_the_command_trains_nothing(folder: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    shutil.copytree(folder / "loo", folder / "again")
    stamp = (folder / "again" / "truth" / "truth.npz").stat().st_mtime_ns
    code, printed, _ = run("evaluate", "problem.py", "run", "-o", "again", "--samples", 25, "-s", "mine", "-q")
    assert code == 0
    assert "mine" in printed
    assert (folder / "again" / "truth" / "truth.npz").stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("expected", ("--orders", 3), "Expected over 3 orders of the data: the exact derivative"),
        ("groups", ("--groups", 6, "--fraction", 0.1), "without each of 6 groups"),
        (
            "lds",
            ("--subsets", 6, "--orders", 2),
            "Expected over 2 orders of the data: trained again on each of 6 subsets",
        ),
    ],
)
def test_every_kind_of_truth_can_be_asked_for(
    folder: Path, run: Callable[..., tuple[int, str, str]], kind: str, options: tuple, said: str
) -> None:
    code, printed, errors = run("evaluate", "problem.py", "run", "-o", kind, "-t", kind, *options, "-s", "mine", "-q")
    assert code == 0, errors
    assert said in printed
    assert Truth.open(folder / kind / "truth").kind == kind
    assert ("Ceiling" in printed) == ("--orders" in options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("-e", "magic"), "--estimator magic: pass one of auto, unrolled"),
        (("--samples", "some", "-s", "mine"), "--samples some: pass a whole number, or 'auto' or 'all'"),
        (("-s", "run"), "no scores"),
        (("-s", "mine", "-s", "./mine"), "called the same"),
        (("-s", "mine", "--weight", "1"), "weight=1.0"),
    ],
)
def test_a_mistake_is_one_sentence(
    run: Callable[..., tuple[int, str, str]], options: tuple[str, ...], said: str
) -> None:
    code, _, errors = run("evaluate", "problem.py", "run", "-o", "x", *options)
    assert code == 2
    assert said in errors
    assert "Traceback" not in errors


def test_the_help_teaches(run: Callable[..., tuple[int, str, str]]) -> None:
    code, printed, _ = run("evaluate", "--help")
    assert code == 0
    for words in ("--truth", "--scores", "Examples", "Killed, the same command goes on"):
        assert words in printed


def test_the_page_holds_a_scatter_for_each_estimate(folder: Path) -> None:
    html = (folder / "loo" / "evaluation.html").read_text()
    payload = json.loads(html.split('<script type="application/json" id="data">')[1].split("</script>")[0])
    assert set(payload["figures"]) == {"mine", "diffin"}
    points, identity = payload["figures"]["mine"]["traces"]
    truth = Truth.open(folder / "loo" / "truth")
    scores = diffin.Scores.open(folder / "mine").influence[np.concatenate(truth.groups)]
    assert np.corrcoef(points["x"], truth.influence)[0, 1] > 0.99999
    assert np.corrcoef(points["y"], scores)[0, 1] > 0.99999
    assert points["text"][0] == f"sample {truth.groups[0][0]}"
    assert len(identity["x"]) == 2
