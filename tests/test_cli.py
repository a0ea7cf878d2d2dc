"""The command line, run as a user runs it: real processes, real files."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from torch.utils.data import TensorDataset

import diffin
from command_line import run_here
from diffin.cli.main import PANELS
from diffin.cli.wording import as_options
from training import record

PROBLEM = '''
"""Digits, and a model small enough to train in a blink."""
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

import diffin
from diffin.tasks import Classification

images, labels = load_digits(return_X_y=True)
images, labels = torch.from_numpy(images / 16).float(), torch.from_numpy(labels)
train, query = TensorDataset(images[:120], labels[:120]), TensorDataset(images[120:160], labels[120:160])


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 10))


def problem():
    return diffin.Problem(Classification(model()), train, query, show=lambda item: item[0].reshape(8, 8))
'''


def run(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "diffin", *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": "160", "OMP_NUM_THREADS": "1", "TERM": "dumb", "NO_COLOR": "1"}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=900, env=environment, check=False)


def name_of(command: Callable[..., None]) -> str:
    return command.__name__.rstrip("_")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A problem file beside a recorded run of its model."""
    path = tmp_path_factory.mktemp("cli")
    (path / "problem.py").write_text(PROBLEM)
    asked = diffin.load_problem(path / "problem.py")
    assert isinstance(asked.train, TensorDataset)
    record(path / "run", asked.task, asked.train, steps=60, batch_size=16, learning_rate=0.5)
    return path


def test_score_writes_parquet_a_page_and_what_repeats_it(folder: Path) -> None:
    asked = ("-e", "diffin", "--set", "batch_size=64", "--set", "batches=2", "--seed", "3")
    done = run("score", "problem.py", "run", "-o", "scores", *asked, cwd=folder)
    assert done.returncode == 0, done.stderr
    table = pq.read_table(folder / "scores" / "part-00000.parquet")
    assert table.num_rows == 120
    assert table.column_names[:4] == ["index", "influence", "standard_error", "loss"]
    scores = diffin.Scores.open(folder / "scores")
    assert f"{scores.influence[scores.most_harmful(1)[0]]:+.3e}" in done.stdout
    assert "left" in done.stderr  # progress, with the time left
    assert "<html" in (folder / "scores" / "report.html").read_text()
    repeat = yaml.safe_load((folder / "scores" / "run.yaml").read_text())
    assert repeat["command"] == "score"
    assert repeat["arguments"]["seed"] == 3
    assert repeat["arguments"]["settings"] == ["batch_size=64", "batches=2"]
    assert scores.metadata["probes"]["metadata"]["estimator"]["batch_size"] == 64
    assert repeat["environment"]["packages"]["diffin"] == diffin.__version__


def test_the_command_line_and_python_give_the_same_scores(folder: Path) -> None:
    done = run(
        "score", "problem.py", "run", "-o", "tracin", "-e", "tracin", "-d", "forward", "--no-report", "-q", cwd=folder
    )
    assert done.returncode == 0, done.stderr
    assert not (folder / "tracin" / "report.html").exists()
    asked = diffin.load_problem(folder / "problem.py")
    scores = diffin.score(
        asked.task, diffin.Trajectory.open(folder / "run"), asked.train, query=asked.query,
        estimator=diffin.TracIn(), derivatives="forward", progress=False,
    )  # fmt: skip
    np.testing.assert_allclose(diffin.Scores.open(folder / "tracin").influence, scores.influence, rtol=1e-5)


def test_self_influence_is_scored_and_shown_as_such(folder: Path) -> None:
    done = run("score", "problem.py", "run", "-o", "self", "--self-influence", "-e", "tracin", "-q", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "loss of the sample itself" in done.stdout
    assert "did to its own loss" in (folder / "self" / "report.html").read_text()
    assert (diffin.Scores.open(folder / "self").influence < 0).all()
    refused = run("score", "problem.py", "run", "-o", "x", "--self-influence", "-e", "moso", "-q", cwd=folder)
    assert refused.returncode == 2
    assert "--estimator unrolled, diffin or tracin" in refused.stderr


def test_report_writes_the_page_of_saved_scores(folder: Path) -> None:
    assert (
        run("score", "problem.py", "run", "-o", "moso", "-e", "moso", "--no-report", "-q", cwd=folder).returncode == 0
    )
    done = run("report", "moso", "--problem", "problem.py", "--run", "run", "-o", "page.html", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert str(folder / "page.html") in done.stdout.replace("\n", "")
    assert "data:image/png;base64" in (folder / "page.html").read_text()


def test_diagnose_checks_forecasts_and_says_what_stands_in_the_way(folder: Path) -> None:
    done = run("diagnose", "problem.py", "run", cwd=folder)
    assert done.returncode == 0, done.stderr
    for word in ("difference", "forward", "ghost", "<- auto", "Scoring 120 samples: about", "Replay:"):
        assert word in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("score", "absent.py", "run", "-o", "x"), "absent.py"),
        (("score", "problem.py", "absent", "-o", "x"), "absent"),
        (("score", "problem.py", "run", "-o", "x", "-p", "head.*"), "'head.*' matches no trainable parameter"),
        (
            ("score", "problem.py", "run", "-o", "x", "-e", "diffin", "--set", "batch_size=many"),
            "--set batch_size=many: pass a whole number, or none",
        ),
        (
            ("score", "problem.py", "run", "-o", "x", "-e", "inverse-hessian", "--set", "dampening=1"),
            "the settings of inverse-hessian are solver=cg, damping=0.01",
        ),
        (("score", "problem.py", "run", "-o", "x", "--set", "rank=1"), "say of which estimator"),
        (("report", "run"), "no scores"),
        (("demo", "-o", "."), "something other than an earlier demo"),
    ],
)
def test_a_mistake_is_one_sentence_and_no_traceback(
    folder: Path,
    arguments: tuple[str, ...],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = run_here(*arguments, cwd=folder, monkeypatch=monkeypatch)
    told = capsys.readouterr().err
    assert code == 2
    assert said in told
    assert "Traceback" not in told


@pytest.mark.parametrize(
    ("python", "shell"),
    [
        ("pass another output, or resume=False to replace them", "pass another output, or --no-resume to replace them"),
        ("twice; pass hessian='difference'", "twice; pass --set hessian=difference"),
        ("pass derivatives='forward' or", "pass --derivatives forward or"),
        ("pass batch_size=8", "pass --batch-size 8"),
        ("pass model.float()", "pass model.float()"),
    ],
)
def test_messages_name_the_options_of_the_command_line(python: str, shell: str) -> None:
    assert as_options(python) == shell


def test_a_mistake_in_the_problem_file_is_shown_where_it_is(folder: Path) -> None:
    (folder / "broken.py").write_text("def problem():\n    return undefined_name\n")
    done = run("score", "broken.py", "run", "-o", "x", cwd=folder)
    assert done.returncode == 2
    assert 'broken.py", line 2' in done.stderr
    assert "undefined_name" in done.stderr


@pytest.mark.parametrize("command", [(), *((name,) for names in PANELS.values() for name in map(name_of, names))])
def test_every_command_explains_itself(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_here(*command, "--help", cwd=tmp_path, monkeypatch=monkeypatch) == 0
    assert "Usage" in capsys.readouterr().out


def test_without_a_command_the_help_is_shown_and_the_version_on_request(tmp_path: Path) -> None:
    shown = run(cwd=tmp_path)
    assert shown.returncode == 0
    assert "Usage" in shown.stdout
    assert run("--version", cwd=tmp_path).stdout == f"diffin {diffin.__version__}\n"


def test_importing_the_library_loads_nothing_that_is_not_needed() -> None:
    code = "import diffin, sys; print([m for m in {heavy} if m in sys.modules])".format(
        heavy=(
            "ray",
            "transformers",
            "plotly",
            "lightning",
            "pyarrow",
            "scipy",
            "jinja2",
            "datasets",
            "sklearn",
            "PIL",
            "peft",
            "tokenizers",
        )
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
