"""Run by test_clean_killed: `diffin clean` in a process that is killed between its suspects and its page, and called again.

Usage: killed_cleaning.py FOLDER KILLS SEED. Prints, as JSON, what was there after each kill.
"""

from __future__ import annotations

from pathlib import Path

import typer
from test_clean_command import PROBLEM
from typer.testing import CliRunner

import diffin
from diffin.cli.clean import clean
from killing import kill_repeatedly
from training import record

KIND = "clean"


def recorded(run: Path) -> None:
    run.parent.mkdir(parents=True, exist_ok=True)
    (run.parent / "problem.py").write_text(PROBLEM)
    asked = diffin.load_problem(run.parent / "problem.py")
    record(run, asked.task, asked.train, steps=200, batch_size=16, learning_rate=0.1)


def compute(output: Path, run: Path, kind: str) -> None:
    del kind
    app = typer.Typer()
    app.command()(clean)
    arguments = [run.parent / "problem.py", run, "-o", output, "--evidence", "mean_loss", "--quiet"]
    done = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output


def written(output: Path) -> dict[str, int]:
    """The manifest of the suspects, written last of them, and what comes after it."""
    names = ("suspects.json", "review.html", "run.yaml")
    return {name: (output / name).stat().st_mtime_ns for name in names if (output / name).exists()}


if __name__ == "__main__":
    kill_repeatedly((KIND,), recorded, compute, written, most=1)
