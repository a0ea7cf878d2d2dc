"""Whatever is killed: every row once, and the bytes of an undisturbed process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHAOS = Path(__file__).parents[2] / "benchmarks" / "chaos.py"

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux")


def storm(*arguments: object) -> list[str]:
    command = [sys.executable, str(CHAOS), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "bytes of all" in done.stdout
    assert "NOT" not in done.stdout
    table = [line.split() for line in done.stdout.splitlines() if line.strip()[:1].isdecimal()]
    rows = [line for line in table if line[-1].isdecimal()]
    assert all(line[-1] == "0" for line in rows), f"a finished part was written again:\n{done.stdout}"
    return [line[1] for line in rows]


@pytest.mark.slow
def test_processes_of_torchrun_are_killed_and_the_same_command_goes_on():
    assert storm("--engine", "torchrun", "--kills", 1, "--samples", 1200, "--seed", 1)


@pytest.mark.slow
def test_driver_worker_and_node_of_a_ray_cluster_are_killed():
    pytest.importorskip("ray")
    for what in ("driver", "worker", "node"):
        assert storm("--engine", "ray", "--kills", 1, "--samples", 2500, "--what", what) == [what]
