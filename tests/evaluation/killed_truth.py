"""Run by test_truth_resume: compute a truth in a process of its own, which is killed at random moments and started again.

Usage: killed_truth.py OUTPUT RUN KIND KILLS SEED. Prints, as JSON, the files that were there after each kill.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import pyarrow.parquet  # noqa: F401  the processes forked below need not import it again
import torch

from diffin import Trajectory
from diffin.evaluation import expected_influence, leave_one_out
from diffin.tasks import Classification
from retrained import TRAININGS


def compute(output: Path | None, run: Path, kind: str):
    training = TRAININGS["momentum and decay"]()
    asked = (Classification(training.model()), Trajectory.open(run), training.train, training.query)
    if kind == "expected":
        return expected_influence(*asked, orders=6, output=output, progress=False)
    processes = 2 if kind == "processes" else 1
    method = "loop" if kind == "loop" else "auto"
    return leave_one_out(
        *asked, samples=None, orders=2, at_once=None if method == "loop" else 3, method=method, processes=processes,
        output=output, progress=False,
    )  # fmt: skip


def _files(output: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in output.glob("part-*.npz")}


def _kill_after_a_part(child: int, output: Path, generator: random.Random) -> bool:
    """Kill the process some moments after it has finished a part; false if it ended before."""
    already = len(_files(output))
    while len(_files(output)) <= already:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            if status:
                sys.exit(f"an attempt failed with status {status}")
            return False
        time.sleep(0.0005)
    time.sleep(generator.uniform(0, 0.04))
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def main() -> None:
    torch.set_num_threads(1)
    torch.func.vmap(torch.sin)(torch.ones(1))  # imports a good deal of torch
    output, run, kind, kills, seed = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), sys.argv[5]
    generator = random.Random(seed)
    history = []
    for attempt in range(kills + 1):
        # Hardly anything but imports has happened in this process, so that a fork is as good as a new one.
        child = os.fork()
        if child == 0:
            compute(output, run, kind)
            os._exit(0)
        if attempt == kills:
            if status := os.waitpid(child, 0)[1]:
                sys.exit(f"the last attempt failed with status {status}")
        elif _kill_after_a_part(child, output, generator):
            history.append(_files(output))
    sys.stdout.write(json.dumps(history))


if __name__ == "__main__":
    main()
