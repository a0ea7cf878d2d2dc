"""The example of the README, typed as it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import diffin
from test_cli import run

EXAMPLE = Path(__file__).parents[1] / "examples" / "digits.py"


def test_the_example_records_and_is_scored(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, EXAMPLE], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    scored = run("score", EXAMPLE, "runs/digits", "-o", "scores/digits", cwd=tmp_path)
    assert scored.returncode == 0, scored.stderr
    assert len(diffin.Scores.open(tmp_path / "scores" / "digits")) == 1400
