"""`diffin clean`, killed when it has found its suspects: the same command goes on to the page."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from killed_cleaning import KIND, written
from test_clean_command import call

from diffin.errors import DiffinError

SCRIPT = Path(__file__).with_name("killed_cleaning.py")


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    """The folder of all runs, and what was there after the kill."""
    folder = tmp_path_factory.mktemp("killed")
    paths = os.pathsep.join([str(SCRIPT.parent), str(SCRIPT.parents[1])])
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), "1", "0"],
        capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": paths}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (history,) = json.loads(done.stdout)[KIND]
    return folder, history


def test_the_kill_came_between_the_suspects_and_the_page(killed) -> None:
    _, history = killed
    assert list(history) == ["suspects.json"]


def test_the_same_command_makes_the_rest_and_computes_nothing_again(killed) -> None:
    folder, history = killed
    whole, resumed = folder / KIND / "whole", folder / KIND / "killed"
    assert written(resumed)["suspects.json"] == history["suspects.json"]
    assert (resumed / "review.html").read_text() == (whole / "review.html").read_text()
    assert pq.read_table(resumed / "cleaned.parquet").equals(pq.read_table(whole / "cleaned.parquet"))
    assert (resumed / "run.yaml").exists()


def test_when_it_is_finished_it_is_refused_as_ever(killed) -> None:
    folder, _ = killed
    with pytest.raises(DiffinError, match="holds suspects already"):
        call_in(folder, "--evidence", "mean_loss")


def test_other_suspects_are_not_taken_for_those_that_are_asked_for(killed) -> None:
    folder, _ = killed
    (folder / KIND / "killed" / "run.yaml").unlink()
    for other in ((), ("--evidence", "final_loss"), ("--evidence", "mean_loss", "--trust-query")):
        with pytest.raises(DiffinError, match="of another run, training set or evidence"):
            call_in(folder, *other)
    call_in(folder, "--evidence", "mean_loss")


def call_in(folder: Path, *arguments: str) -> None:
    call(folder, "-o", str(folder / KIND / "killed"), *arguments)
