"""Run by test_resume: attribute in a process of its own, which is killed at random moments and started again.

Usage: killed_attribution.py FOLDER KILLS SEED. Attributes with each estimator into FOLDER/<estimator>/whole and, killed, into
FOLDER/<estimator>/killed. Prints, as JSON, how many files were there after each kill, by estimator.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

import diffin
from diffin.attribution import attribute, collecting, directions
from diffin.tasks import Classification
from killing import kill_repeatedly
from retrained import Training, mlp, sgd

ESTIMATORS = {
    "steps": diffin.Unrolled(propagation="steps", states=8, hessian="exact"),
    "segments": diffin.Unrolled(propagation="segments", rank=4, curvature_samples=10),
    "replay": diffin.Replay(),
}
QUERIES = 6


def training() -> Training:
    """With dropout, so that what is resumed has to find its random numbers."""
    return Training(
        lambda: mlp(nn.Dropout(0.2)), sgd(momentum=0.9, lr=0.02), steps=32, checkpoints=range(0, 32, 4), size=64
    )


def compute(output: Path, run: Path, kind: str) -> None:
    chosen = training()
    parameters = sum(p.numel() for p in chosen.model().parameters())
    # Two blocks of three queries, and parts of eight samples.
    directions._BLOCK_BYTES, collecting._PART_ROWS = 3 * 8 * parameters, 8
    query = torch.utils.data.Subset(chosen.query, range(QUERIES))
    attribute(
        Classification(chosen.model()), diffin.Trajectory.open(run), chosen.train, query, output=output,
        estimator=ESTIMATORS[kind], batch_size=3, top=5, matrix=True, progress=False,
    )  # fmt: skip


def written(output: Path) -> dict[str, int]:
    """The files that a resumed run goes on from, and when they were written."""
    patterns = ("directions/*/probe-*.json", "parts/*.parquet", "matrix/*.parquet", "replay/*.safetensors")
    files = [file for pattern in patterns for file in output.glob(pattern)]
    return {str(file.relative_to(output)): file.stat().st_mtime_ns for file in files}


if __name__ == "__main__":
    kill_repeatedly(ESTIMATORS, lambda run: training().run(record=run), compute, written, most=6)
