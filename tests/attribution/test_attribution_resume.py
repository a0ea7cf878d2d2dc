"""An attribution that was killed goes on where it stopped, and ends as if it had not been."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

import diffin

KINDS = ("steps", "segments", "replay")


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[dict[str, int]]]]:
    folder = tmp_path_factory.mktemp("killed")
    paths = [str(Path(diffin.__file__).parents[1]), str(Path(__file__).parents[1])]
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("killed_attribution.py")), str(folder), "3", "1"],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": ":".join(paths), "OMP_NUM_THREADS": "1"},
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.skipif(not hasattr(sys, "getdlopenflags"), reason="needs fork and SIGKILL")
@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_random_moments_it_ends_with_the_same_bytes(killed, kind: str) -> None:
    folder, histories = killed
    assert _contents(folder / kind / "killed") == _contents(folder / kind / "whole")
    history = histories[kind]
    assert len({len(files) for files in history}) > 1, f"the kills came too early or too late: {history}"
    for before, after in pairwise(history):
        # A matrix part is written just before the part that says it is there; the walk of a replay replaces its one file;
        # and the parts go once all of them are there.
        kept = {
            name: when
            for name, when in before.items()
            if name.startswith("directions") or (name.startswith("parts") and name in after)
        }
        assert kept.items() <= after.items(), "a finished part was written again"
