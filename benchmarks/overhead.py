"""What recording adds to a training step that takes no checkpoint.

It is far below the noise of whole training steps, so steps that cost next to nothing (the backward pass of a sum over one
parameter; the gradients of the others are there already) are timed with and without a recorder in turn. The difference is
everything the recorder does: hooks on the backward pass and on the optimizer, indices, journal.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import torch

import diffin
from networks import cnn

_STEPS = 513  # the final state, stored on leaving, is not timed
_ROUNDS = 7


def recording_seconds(batch_size: int, dataset_size: int) -> float:
    """Mean time that the recorder adds to a step outside checkpoints; the median over rounds."""
    added = []
    for _ in range(_ROUNDS):
        with tempfile.TemporaryDirectory() as folder:
            bare = _seconds_per_step(None, batch_size, dataset_size)
            recorded = _seconds_per_step(Path(folder) / "run", batch_size, dataset_size)
        added.append(recorded - bare)
    return statistics.median(added)


def _seconds_per_step(folder: Path | None, batch_size: int, dataset_size: int) -> float:
    model = cnn()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    indices = torch.randint(dataset_size, (batch_size,))

    def step() -> None:
        next(model.parameters()).sum().backward()
        optimizer.step()

    if folder is None:
        start = time.perf_counter()
        for _ in range(_STEPS):
            step()
        return (time.perf_counter() - start) / _STEPS
    # Step 0 is the only checkpoint, and is written before the clock starts.
    with diffin.Recorder(
        folder, model, optimizer, dataset_size=dataset_size, total_steps=_STEPS, checkpoints=[0]
    ) as recorder:
        start = time.perf_counter()
        for _ in range(_STEPS):
            step()
            recorder.step(indices)
        return (time.perf_counter() - start) / _STEPS
