"""Run by the tests of estimators: score in a process of its own, which is killed at random moments and started again.

Usage: killed_build.py FOLDER KILLS SEED. Scores with each estimator into FOLDER/<estimator>/whole and, killed, into
FOLDER/<estimator>/killed. Prints, as JSON, what was written after each kill, by estimator.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

import diffin
from diffin.derivatives import Forward
from diffin.tasks import Classification
from killing import kill_repeatedly
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


if __name__ == "__main__":
    kill_repeatedly(ESTIMATORS, lambda run: training().run(record=run), compute, written, most=3)
