"""Run by the tests of estimators: score in a process of its own, which is killed at random moments and started again.

Usage: killed_build.py FOLDER KILLS SEED. Scores with each estimator into FOLDER/<estimator>/whole and, killed, into
FOLDER/<estimator>/killed. Prints, as JSON, what was written after each kill, by estimator.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from torch import nn

import diffin
from diffin.derivatives import Forward
from diffin.tasks import Classification
from retrained import Training, mlp, sgd

ESTIMATORS = {
    "replay": diffin.Replay(),
    "steps": diffin.Unrolled(propagation="steps", states=12),
    "segments": diffin.Unrolled(propagation="segments", rank=6, curvature_samples=10),
}


def training() -> Training:
    """With dropout, so that what is resumed has to find its random numbers."""
    make = sgd(momentum=0.9, weight_decay=0.01, lr=0.02)
    return Training(lambda: mlp(nn.Dropout(0.2)), make, steps=72, checkpoints=range(0, 72, 6), clip=0.5)


def compute(output: Path, run: Path, kind: str) -> None:
    chosen = training()
    diffin.score(
        Classification(chosen.model()), diffin.Trajectory.open(run), chosen.train, query=chosen.query, output=output,
        estimator=ESTIMATORS[kind], derivatives=Forward(), batch_size=8, progress=False,
    )  # fmt: skip


def written(output: Path) -> dict[str, int]:
    """The files that a resumed run goes on from, and when they were written."""
    files = [*output.glob("replay/*.safetensors"), *output.glob("probes/probe-*.json")]
    return {file.name: file.stat().st_mtime_ns for file in files if file.exists()}


def _kill_after_progress(child: int, output: Path, generator: random.Random) -> None:
    """Kill the process some moments after it has written something, unless it ends before."""
    already = written(output)
    wanted = generator.randint(1, 3)
    while wanted and not os.waitpid(child, os.WNOHANG)[0]:
        try:
            now = written(output)
        except FileNotFoundError:  # replaced while it was looked at
            continue
        if now != already:
            already, wanted = now, wanted - 1
        time.sleep(0.0005)
    if wanted:
        return
    time.sleep(generator.uniform(0, 0.02))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def main() -> None:
    torch.set_num_threads(1)
    folder, kills, generator = Path(sys.argv[1]), int(sys.argv[2]), random.Random(sys.argv[3])
    run = folder / "run"
    training().run(record=run)
    histories = {}
    for kind in ESTIMATORS:
        # It also imports what is imported late, so that the processes forked below need not.
        compute(folder / kind / "whole", run, kind)
        output, history = folder / kind / "killed", []
        for attempt in range(kills + 1):
            child = os.fork()
            if child == 0:
                compute(output, run, kind)
                os._exit(0)
            if attempt < kills:
                _kill_after_progress(child, output, generator)
                history.append(written(output))
            elif status := os.waitpid(child, 0)[1]:
                sys.exit(f"the last attempt with {kind} failed with status {status}")
        histories[kind] = history
    sys.stdout.write(json.dumps(histories))


if __name__ == "__main__":
    main()
