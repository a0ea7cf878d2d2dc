"""What benchmarks of selection share: training on some of a pool, the same number of steps whatever is kept, and recorded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import diffin

Indices = npt.NDArray[np.int64]

Net = TypeVar("Net", bound=nn.Module)


@dataclass(frozen=True)
class Training(Generic[Net]):
    """A training that is about to begin.

    Attributes:
        model: freshly drawn.
        optimizer: of it.
        scheduler: steps after each step.
        loss: the mean over a batch, of positions in the pool.
        batch: positions of the next batch, Int64[Tensor, "B"].
    """

    model: Net
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    loss: Callable[[Tensor], Tensor]
    batch: Callable[[], Tensor]


class TrainedPool(ABC, Generic[Net]):
    """Samples to select from, and how a model is trained on some of them.

    Attributes:
        train: the pool.
        steps: of every training.
        checkpoints: that are recorded.
    """

    train: TensorDataset
    steps: int
    checkpoints: int

    def __len__(self) -> int:
        return len(self.train)

    @abstractmethod
    def training(self, indices: Indices, seed: int) -> Training[Net]:
        """A training on those positions, with everything drawn by the seed."""

    def fit(self, indices: Indices, folder: Path | None, seed: int) -> Net:
        """Train on some of the pool for the fixed number of steps, and record it unless ``folder`` is ``None``."""
        begun = self.training(indices, seed)
        recorder = None
        if folder is not None:
            recorder = diffin.Recorder(
                folder, begun.model, begun.optimizer, dataset_size=len(self), total_steps=self.steps,
                checkpoints=self.checkpoints,
            )  # fmt: skip
        for _ in range(self.steps):
            batch = begun.batch()
            begun.loss(batch).backward()
            begun.optimizer.step()
            if recorder is not None:
                recorder.step(batch)
            begun.scheduler.step()
            begun.optimizer.zero_grad()
        if recorder is not None:
            recorder.close()
        return begun.model
