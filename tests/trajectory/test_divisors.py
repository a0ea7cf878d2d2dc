"""What the losses of a step were divided by, and clipping that somebody else did, are recorded and repeated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import diffin
from diffin.errors import RecordingError
from diffin.rerun import Rerun
from diffin.rerun.batches import recorded_order, shuffled_order
from diffin.sources import open_source
from diffin.tasks import FunctionTask
from diffin.trajectory import StepLog

STEPS = 6


class Summed(FunctionTask):
    """Losses that are sums over the items of a sample, over a constant."""

    reduction = "sum"
    divisor = 2.0


def data() -> TensorDataset:
    """Samples of one to four items, the rest hidden by zeros."""
    generator = torch.Generator().manual_seed(0)
    counts = torch.arange(12) % 4 + 1
    inputs = torch.randn(12, 4, 3, generator=generator, dtype=torch.float64)
    return TensorDataset(inputs * (torch.arange(4) < counts[:, None])[..., None], counts)


def sums(model: nn.Module, batch: Any) -> torch.Tensor:
    return model(batch[0]).square().sum(dim=(1, 2))


def record(path: Path, *, even: bool = False) -> tuple[nn.Module, diffin.Trajectory]:
    """Two micro-batches a step, whose sums are divided by the items of the step, or by twice the samples of the step."""
    torch.manual_seed(1)
    model = nn.Linear(3, 2, bias=False).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    inputs, counts = data().tensors
    generator = torch.Generator().manual_seed(2)
    with diffin.Recorder(path, model, optimizer, dataset_size=12, checkpoints=[2, 4]) as recorder:
        for _ in range(STEPS):
            first, second = torch.randperm(12, generator=generator)[:5].split([3, 2])
            divisor = 2 * 5 if even else int(counts[first].sum() + counts[second].sum())
            for part in (first, second):
                (sums(model, (inputs[part],)).sum() / divisor).backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.7)
            recorder.note_clipping(norm, 0.7)
            optimizer.step()
            recorder.accumulate(first)
            recorder.step(second, divisors=[torch.tensor(divisor)] * 2, items=2.0 if even else torch.nan)
            optimizer.zero_grad()
    return model, diffin.Trajectory.open(path)


def log_of(trajectory: diffin.Trajectory) -> StepLog:
    assert trajectory.steps is not None
    return trajectory.steps


def test_a_mean_over_items_is_repeated_by_sums(tmp_path: Path) -> None:
    model, trajectory = record(tmp_path)
    log, counts = log_of(trajectory), data().tensors[1]
    assert log.items_per_sample() is None
    assert log.division(3).divisors == (float(counts[log.indices(3)].sum()),) * 2
    task = Summed(model, lambda model, batch: sums(model, batch) / 2.0)
    rerun = Rerun(task, trajectory, open_source(data()))
    assert rerun.repeat(trajectory.initial, trajectory.final) < 1e-12
    assert (log.clip_coefficients < 1).any()
    with pytest.raises(diffin.DiffinError, match="mean over the tokens"):
        recorded_order(log)
    shares = [part.share for step in range(STEPS) for part in shuffled_order(log, 12, 0, task)(step)]
    assert shares == [part.share for step in range(STEPS) for part in recorded_order(log, task)(step)]


def test_where_every_sample_has_as_many_items_means_do(tmp_path: Path) -> None:
    model, trajectory = record(tmp_path, even=True)
    assert log_of(trajectory).items_per_sample() == 2
    task = FunctionTask(model, lambda model, batch: sums(model, batch) / 2.0)
    rerun = Rerun(task, trajectory, open_source(data()))
    assert rerun.repeat(trajectory.initial, trajectory.final) < 1e-12


def test_what_holds_anyway_is_not_written_down(tmp_path: Path) -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with diffin.Recorder(tmp_path, model, optimizer, dataset_size=9, obstacles=["Something else."]) as recorder:
        for divisors in ([6, 4], [5, 5]):
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
            recorder.accumulate([0, 1, 2])
            recorder.step([3, 4], divisors=divisors)
        recorder.accumulate([0])
        with pytest.raises(RecordingError, match="divisors has 1 entries for 2 micro-batches"):
            recorder.step([1], divisors=[2.0])
    trajectory = diffin.Trajectory.open(tmp_path)
    log = log_of(trajectory)
    assert log.division(0) is None
    assert log.division(1).divisors == (5.0, 5.0)
    assert log.items_per_sample() == 1
    np.testing.assert_allclose([part.share for part in recorded_order(log)(0)], [1 / 6, 1 / 4])
    np.testing.assert_allclose([part.share for part in recorded_order(log)(1)], [1 / 5, 1 / 5])
    assert trajectory.replay_obstacles() == ["Something else."]


def test_clipping_twice_is_refused(tmp_path: Path) -> None:
    model = nn.Linear(2, 1)
    recorder = diffin.Recorder(tmp_path, model, torch.optim.SGD(model.parameters(), lr=0.1), dataset_size=9)
    recorder.note_clipping(3.0, 1.0)
    with pytest.raises(RecordingError, match="twice"):
        recorder.clip_grad_norm_(1.0)
