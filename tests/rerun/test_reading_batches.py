"""What a repeated training reads: the samples that its steps use, once and in order where they fit in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from diffin.errors import DatasetError
from diffin.rerun import Rerun, batches
from diffin.rerun.batches import Batches
from diffin.sources import open_source
from retrained import Training, mlp, sgd


class Noting(Dataset[tuple[Tensor, int]]):
    """Twenty samples; which were asked for, in order."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.asked.append(index)
        return torch.full((3,), float(index)), index


def read(found: Batches, indices: list[int]) -> list[int]:
    inputs, labels = found.read(np.array(indices))
    assert torch.equal(inputs[:, 0], labels.double().to(inputs.dtype))
    return list(labels.tolist())


def test_what_is_held_is_read_once_and_the_rest_when_it_is_asked_for() -> None:
    data = Noting()
    found = Batches(open_source(data), torch.device("cpu"))
    assert read(found, [7, 3]) == [7, 3]
    found.hold(np.array([9, 2, 5, 2]))
    assert data.asked == [7, 3, 2, 5, 9, 2, 5, 9]  # a few, to see how large they are, and all
    data.asked.clear()
    assert read(found, [9, 2, 9]) == [9, 2, 9]
    found.hold(np.array([5, 2]))
    assert data.asked == []
    assert read(found, [2, 19]) == [2, 19]
    assert data.asked == [2, 19]
    found.hold(np.array([19]))
    data.asked.clear()
    assert read(found, [19, 2]) == [19, 2]
    assert data.asked == []


def test_samples_that_do_not_fit_are_read_when_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    data = Noting()
    found = Batches(open_source(data), torch.device("cpu"))
    monkeypatch.setattr(batches, "_HELD_BYTES", 5 * 20)
    found.hold(np.arange(5))
    found.hold(np.arange(8))  # too many, but those that fitted stay
    data.asked.clear()
    assert read(found, [4, 0]) == [4, 0]
    assert data.asked == []
    assert read(found, [7, 0]) == [7, 0]
    assert data.asked == [7, 0]


def test_what_a_collate_function_of_the_user_makes_is_not_held() -> None:
    data = Noting()
    found = Batches(open_source(data, collate=lambda samples: [x for x, _ in samples]), torch.device("cpu"))
    found.hold(np.arange(5))
    assert data.asked == []
    assert found.read(np.array([3]))[0][0] == 3


def test_a_sample_that_no_step_used_need_not_be_readable(tmp_path: Path) -> None:
    training = Training(mlp, sgd())
    task, trajectory = training.recorded(tmp_path / "run")
    steps = range(2)
    rerun = Rerun(task, trajectory, open_source(training.train))
    used = rerun.samples(steps)
    assert 0 < len(used) < len(training.train)
    assert np.array_equal(used, np.unique(np.concatenate([p.indices for t in steps for p in rerun.order(t)])))

    class Broken(Dataset[Any]):
        def __len__(self) -> int:
            return len(training.train)

        def __getitem__(self, index: int) -> Any:
            if index not in used:
                raise DatasetError("it is broken")
            return training.train[index]

    rerun = Rerun(task, trajectory, open_source(Broken()))
    with rerun.entered(steps):
        state = rerun.state(trajectory.stored[0])
        for _ in steps:
            state = rerun.advance(state)
    assert state.step == 2
    with pytest.raises(DatasetError, match="broken"), rerun.entered():
        pass
