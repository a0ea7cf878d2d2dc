"""The example of a text classifier, typed as it says, on made-up reviews."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import diffin

pytest.importorskip("transformers")

EXAMPLE = Path(__file__).parents[2] / "examples" / "text" / "reviews.py"


@pytest.mark.slow
def test_the_example_trains_records_scores_and_shows_reviews(tmp_path: Path) -> None:
    command = [sys.executable, EXAMPLE, "--train", "160", "--made-up"]
    # So small a model is fastest on one thread, and leaves the other cores to the other tests.
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=alone)
    assert done.returncode == 0, done.stderr
    assert "The 8 most harmful of 160 reviews" in done.stdout
    assert "label was flipped" in done.stdout
    scores = diffin.Scores.open(tmp_path / "scores" / "reviews")
    assert len(scores) == 160
    trajectory = diffin.Trajectory.open(tmp_path / "runs" / "reviews")
    assert trajectory.replay_obstacles() == []
