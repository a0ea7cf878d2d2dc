"""A truth that is killed goes on, and comes to the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from killed_truth import compute

from diffin.errors import EvaluationError
from diffin.evaluation import Truth, leave_one_out
from retrained import TRAININGS

SCRIPT = Path(__file__).with_name("killed_truth.py")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    TRAININGS["momentum and decay"]().run(record=tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("kind", ["stacked", "loop", "processes", "expected"])
def test_a_killed_truth_goes_on_and_comes_to_the_same(kind: str, run: Path, tmp_path: Path) -> None:
    output = tmp_path / "truth"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(output), str(run), kind, "3", "0"],
        capture_output=True, text=True, timeout=300, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    history = json.loads(done.stdout)
    assert len(history) >= 2, "the kills came too late to say anything"
    for before, after in pairwise(history):
        assert before.items() <= after.items(), "a finished part was made again"
    killed, whole = Truth.open(output), compute(None, run, kind)
    np.testing.assert_array_equal(killed.replicas, whole.replicas)
    assert {path.name for path in output.iterdir()} == {"truth.json", "truth.npz"}


@pytest.fixture
def asked(run: Path) -> tuple:
    from diffin import Trajectory
    from diffin.tasks import Classification

    training = TRAININGS["momentum and decay"]()
    return Classification(training.model()), Trajectory.open(run), training.train, training.query


def test_a_finished_truth_is_read_and_not_computed_again(asked: tuple, tmp_path: Path) -> None:
    first = leave_one_out(*asked, samples=3, output=tmp_path / "truth", progress=False)
    stamp = (tmp_path / "truth" / "truth.npz").stat().st_mtime_ns
    again = leave_one_out(*asked, samples=3, output=tmp_path / "truth", progress=False)
    np.testing.assert_array_equal(first.replicas, again.replicas)
    assert (tmp_path / "truth" / "truth.npz").stat().st_mtime_ns == stamp


def test_another_question_is_refused_unless_it_replaces(asked: tuple, tmp_path: Path) -> None:
    output = tmp_path / "truth"
    leave_one_out(*asked, samples=3, output=output, progress=False)
    with pytest.raises(EvaluationError, match="other samples and weights"):
        leave_one_out(*asked, samples=4, output=output, progress=False)
    task, trajectory, train, _ = asked
    with pytest.raises(EvaluationError, match=r"another truth.*query"):
        leave_one_out(task, trajectory, train, train, samples=3, output=output, progress=False)
    replaced = leave_one_out(*asked, samples=4, output=output, resume=False, progress=False)
    assert len(replaced.groups) == len(Truth.open(output).groups) == 4


def test_damage_is_named(asked: tuple, tmp_path: Path) -> None:
    output = tmp_path / "truth"
    with pytest.raises(EvaluationError, match="no complete truth"):
        Truth.open(output)
    leave_one_out(*asked, samples=3, output=output, progress=False)
    (output / "truth.npz").write_bytes(b"PK nothing")
    with pytest.raises(EvaluationError, match="damaged"):
        Truth.open(output)
