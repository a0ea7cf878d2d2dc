"""A few samples of a data set: enough to check a task, choose a back end, and tell one data set from another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from diffin.batches import Batch, batch_size, digest, select
from diffin.errors import DatasetError
from diffin.loss_checks import check_losses
from diffin.memory import from_sample_bytes, is_out_of_memory
from diffin.sources import Source
from diffin.task import PerSampleLoss, Task, frozen

_SAMPLES = 64
_FEWEST = 16


@dataclass(frozen=True)
class Sample:
    """A few samples of a dataset, spread over it where any sample can be read.

    Attributes:
        batch: the samples.
        count: how many.
    """

    batch: Batch
    count: int

    @classmethod
    def of(cls, source: Source) -> Sample:
        """Those that can be read of a few samples.

        Raises:
            DatasetError: none of them can be read.
        """
        if source.random_access and source.length is not None:
            spread = np.unique(np.linspace(0, source.length - 1, min(_SAMPLES, source.length)).round().astype(np.int64))
            source = source.select(spread)
        for indices, batch in source.batches(_SAMPLES, stop=_SAMPLES):
            return cls(batch, len(indices))
        reasons = list(source.failures.values())
        raise DatasetError(
            f"none of {len(reasons)} samples that were looked at can be read; the first: {reasons[0] if reasons else ''}"
        )

    def digest(self) -> str:
        """Identifies the samples by the bytes of their tensors."""
        return digest(self.batch)

    def thinned(self, count: int) -> Sample:
        """``count`` of the samples, still spread over the dataset."""
        if count >= self.count:
            return self
        return Sample(select(self.batch, torch.linspace(0, self.count - 1, count).round().long()), count)

    def usable(self, task: Task) -> Sample | None:
        """Samples with a finite loss, if there are any and the task makes one independent loss of each.

        Fewer of large samples are taken, because the checks cost a few gradients of each.

        Raises:
            TaskError: the losses of the task cannot be used.
            DatasetError: the collate function did not make a batch of as many samples as it was given.
        """
        if batch_size(self.batch) != self.count:
            raise DatasetError(
                f"the collate function made a batch of {batch_size(self.batch)} samples of {self.count}; pass collate= "
                "a function that keeps every sample, in order, along the first dimension of the first tensor"
            )
        sample = self.thinned(max(_FEWEST, from_sample_bytes(self.batch, self.count)))
        while True:
            try:
                return sample._finite(task)
            except RuntimeError as error:
                if sample.count == 1 or not is_out_of_memory(error):
                    raise
            sample = sample.thinned(sample.count // 2)

    def _finite(self, task: Task) -> Sample | None:
        with frozen(task.model), torch.no_grad():
            loss = PerSampleLoss(task)
            losses = loss(loss.parameters, loss.to_device(self.batch))
        if not isinstance(losses, torch.Tensor) or losses.shape != (self.count,):
            check_losses(task, self.batch)  # says what is wrong with it
        rows = torch.nonzero(torch.isfinite(losses).cpu()).flatten()
        if not len(rows):
            return None
        batch = self.batch if len(rows) == self.count else select(self.batch, rows)
        check_losses(task, batch)
        return Sample(batch, len(rows))
