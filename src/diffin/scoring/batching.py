"""How many samples to measure at once, and what to do when that was too many."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from diffin.batches import Batch, nbytes, select
from diffin.derivatives.base import Measure, Measured
from diffin.errors import ScoringError
from diffin.memory import is_out_of_memory, power_of_two

_log = logging.getLogger(__name__)

_CUDA_LIMIT = 4096
_CUDA_SHARE = 0.6


def from_free_memory(sample: Batch, count: int, device: torch.device, measure: Callable[[Batch, int], object]) -> int:
    """A batch size for which the memory that is free on a CUDA device suffices, from what ``sample`` takes there.

    Args:
        sample: a batch of ``count`` samples, already on the device.
        count: how many.
        device: a CUDA device.
        measure: does with a batch of so many samples what will be done with every batch.
    """
    measure(select(sample, slice(0, 1)), 1)  # libraries allocate their workspaces once
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    measure(sample, count)
    per_sample = max(1.0, (torch.cuda.max_memory_allocated(device) - before + nbytes(sample)) / count)
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = torch.cuda.mem_get_info(device)[0] + cached
    return max(1, min(_CUDA_LIMIT, power_of_two(_CUDA_SHARE * free / per_sample)))


class BackOff:
    """Measures batches in halves, quarters, ... once the device had too little memory for a whole one.

    Args:
        whole: never halve a batch, because its samples belong together.

    Attributes:
        limit: the largest number of samples to measure at once, ``None`` until memory ran out.
    """

    def __init__(self, *, whole: bool = False) -> None:
        self.limit: int | None = None
        self._whole = whole

    def __call__(self, measure: Measure, batch: Batch, size: int) -> Measured:
        """``measure(batch)``, a batch of ``size`` samples, in as many pieces as it takes.

        Raises:
            ScoringError: memory does not suffice for one sample, or for samples that belong together.
        """
        if self.limit is None or size <= self.limit:
            try:
                return measure(batch)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                reason = str(error).strip().splitlines()[0]
            # Outside the handler, where the error no longer holds on to the tensors of the failed attempt.
            self._shrink(size, reason)
        half = (size + 1) // 2
        first = self(measure, select(batch, slice(0, half)), half)
        second = self(measure, select(batch, slice(half, size)), size - half)
        return Measured(_cat(first.losses, second.losses), _cat(first.derivatives, second.derivatives))

    def _shrink(self, size: int, reason: str) -> None:
        if self._whole:
            raise ScoringError(
                f"the device has too little memory for a group of {size} samples whose losses are coupled ({reason}); pass a "
                "lower group_size to the task, study fewer parameters (parameters=), or use another device"
            )
        if size == 1:
            raise ScoringError(
                f"the device has too little memory to measure one sample ({reason}); free memory there, study fewer "
                "parameters (parameters=), or use another device"
            )
        self.limit = (size + 1) // 2
        _log.warning("too little memory for %d samples at once (%s); going on with %d", size, reason, self.limit)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        elif torch.backends.mps.is_available():
            torch.mps.empty_cache()


def _cat(a: Tensor, b: Tensor) -> Tensor:
    return torch.cat([a, b])
