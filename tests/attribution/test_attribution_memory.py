"""Memory does not grow with the number of samples."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import diffin


def _peak(count: int, folder: Path) -> int:
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("memory_of_attribution.py")), str(count), str(folder)],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(Path(diffin.__file__).parents[1]), "OMP_NUM_THREADS": "1"},
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(sys.platform == "win32", reason="needs the module 'resource'")
def test_ten_times_the_samples_take_the_same_memory(tmp_path: Path) -> None:
    few, many = (_peak(count, tmp_path / str(count)) for count in (1_000, 10_000))
    assert abs(many / few - 1) < 0.05, f"{few} KiB for 1,000 samples, {many} KiB for 10,000"
