"""Measuring every probe on every sample, on one device.

Data is read once. All checkpoints are kept ready on the device if they fit into part of its memory; if they do not, a
block of batches is read, and every checkpoint is loaded once for the block. Memory does not grow with the number of
samples either way.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffin.across_probes import AcrossProbe
from diffin.batches import Batch, nbytes
from diffin.derivatives.base import Directional, Measured
from diffin.derivatives.own import OwnMeasuring
from diffin.errors import DerivativeError, TaskError
from diffin.memory import power_of_two
from diffin.probes import CheckpointProbes, ProbeSet
from diffin.scoring.batching import BackOff
from diffin.scoring.columns import Floats, Rows
from diffin.sources import Indices
from diffin.task import PerSampleLoss, Task

BLOCK_BYTES = 256 * 2**20
ROWS_BYTES = 2**25
"""The gradients of a batch with respect to the largest parameter, where they are formed."""
_RESIDENT_SHARE = 0.25
# A mixed probe differenced at four displaced copies of the parameters is the most that a back end keeps.
_COPIES = 4


class Engine:
    """Measures the probes of every checkpoint. Use it inside :func:`diffin.task.frozen`.

    Args:
        task: model and loss.
        probes: what to measure.
        backend: how.
        resident_bytes: how much the checkpoints kept ready may take together; ``None`` for a quarter of the memory of
            the device.
        block_bytes: how many bytes of samples are held while checkpoints are loaded in turn.
    """

    def __init__(
        self,
        task: Task,
        probes: ProbeSet,
        backend: Directional,
        *,
        resident_bytes: int | None = None,
        block_bytes: int = BLOCK_BYTES,
    ) -> None:
        self._task, self._probes, self._backend = task, probes, backend
        self._block_bytes = block_bytes
        self._back_off = BackOff(whole=task.group_size is not None)
        first = probes.load(0)
        budget = _resident_budget(task.device) if resident_bytes is None else resident_bytes
        needed = _bytes_needed(first) * len(probes)
        self._ready = [self._prepared(position) for position in range(len(probes))] if needed <= budget else None

    def measure(
        self, batches: Iterable[tuple[Indices, Batch]], advance: Callable[[int], None] = lambda amount: None
    ) -> Iterator[Rows]:
        """Measure batch after batch.

        Args:
            batches: indices and samples; an index of -1 for a sample that is there for the losses of others only.
            advance: called with the number of samples that have been measured at all checkpoints since the last call.

        Yields:
            What was measured of each batch, in the order of ``batches``, without the samples of index -1.
        """
        count = len(self._probes)
        for block in self._blocks(batches):
            columns: list[list[tuple[Tensor, Tensor]]] = [[] for _ in block]
            measured = told = 0
            for checkpoint in self._checkpoints():
                for column, (indices, batch) in zip(columns, block, strict=True):
                    column.append(checkpoint(batch, len(indices)))
                    # A block may take long: a sample measured at some of the checkpoints counts as that share of one.
                    measured += int((indices >= 0).sum())
                    advance(measured // count - told)
                    told = measured // count
            for (indices, _), column in zip(block, columns, strict=True):
                rows = Rows(
                    indices, _stacked([losses for losses, _ in column]), _stacked([terms for _, terms in column])
                )
                yield rows if (indices >= 0).all() else rows.at(np.flatnonzero(indices >= 0))

    def most_rows(self) -> int | None:
        """How many samples a processor does well to measure at once; ``None`` where no gradients of samples are formed."""
        formed = [probe.rest for probe in self._probes.load(0).self_probes if isinstance(probe, AcrossProbe)]
        return min((power_of_two(ROWS_BYTES / max(map(nbytes, one.values()))) for one in formed), default=None)

    def measure_first(self, batch: Batch, size: int) -> None:
        """Measure a batch at the first checkpoint and forget it, to see what that takes."""
        next(self._checkpoints())(batch, size)

    def _blocks(self, batches: Iterable[tuple[Indices, Batch]]) -> Iterator[list[tuple[Indices, Batch]]]:
        if self._ready is not None:
            # Each checkpoint would move the batch to the device anew.
            yield from ([(indices, self._ready[0].loss.to_device(batch))] for indices, batch in batches)
            return
        block: list[tuple[Indices, Batch]] = []
        held = 0
        for indices, batch in batches:
            block.append((indices, batch))
            held += nbytes(batch)
            if held >= self._block_bytes:
                yield block
                block, held = [], 0
        if block:
            yield block

    def _checkpoints(self) -> Iterator[_Prepared]:
        if self._ready is not None:
            yield from self._ready
            return
        for position in range(len(self._probes)):
            yield self._prepared(position)

    def _prepared(self, position: int) -> _Prepared:
        return _Prepared(self._task, self._probes, position, self._backend, self._back_off)


class _Prepared:
    """A checkpoint with everything done that all samples share."""

    def __init__(self, task: Task, probes: ProbeSet, position: int, backend: Directional, back_off: BackOff) -> None:
        checkpoint = probes.load(position)
        self.loss = PerSampleLoss(task, checkpoint.state, list(probes.parameters))
        self._measures = [(probe.weight, backend.prepare(self.loss, probe)) for probe in checkpoint.probes]
        if checkpoint.self_probes:
            if not isinstance(backend, OwnMeasuring):
                raise DerivativeError(
                    f"derivatives={backend.name!r} cannot measure probes of self-influence; pass derivatives='auto'"
                )
            self._measures += [
                (probe.weight, backend.prepare_own(self.loss, probe)) for probe in checkpoint.self_probes
            ]
        self._back_off = back_off

    def __call__(self, batch: Batch, size: int) -> tuple[Tensor, Tensor]:
        """Mean loss and sum of the weighted derivatives over the probes. Float64[Tensor, "B"] each, on the device."""
        batch = self.loss.to_device(batch)
        losses, terms = [], []
        for weight, measure in self._measures:
            measured = self._back_off(measure, batch, size)
            _check_shape(measured, size)
            losses.append(measured.losses.detach())
            terms.append(weight * measured.derivatives.detach())
        return torch.stack(losses).mean(dim=0), torch.stack(terms).sum(dim=0)


def _check_shape(measured: Measured, size: int) -> None:
    for tensor in (measured.losses, measured.derivatives):
        if tensor.shape != (size,):
            raise TaskError(
                f"a batch of {size} samples gave losses of shape {tuple(tensor.shape)}; Task.losses must return shape "
                f"({size},), and the collate function a batch of as many samples as it was given"
            )


def _stacked(columns: list[Tensor]) -> Floats:
    """Columns of (B,) as a float64 array of (B, m)."""
    return np.ascontiguousarray(torch.stack(columns, dim=1).cpu().to(torch.float64).numpy())


def _bytes_needed(checkpoint: CheckpointProbes) -> int:
    total = nbytes(checkpoint.state)
    for probe in checkpoint.probes:
        total += _COPIES * nbytes(probe.u) + sum(nbytes(vector) for vector in (probe.u, *(probe.mixed or ())))
    for own in checkpoint.self_probes:
        if isinstance(own, AcrossProbe):
            total += sum(map(nbytes, (own.end.state, own.end.basis, own.rest, own.directions)))
        else:
            # The directions are stacked, and the parameters displaced to either side.
            total += 2 * (sum(map(nbytes, own.vectors())) + nbytes(checkpoint.state))
    return total


def kept_ready(task: Task, probes: ProbeSet, count: int) -> int:
    """Bytes that a process keeps on the device of ``count`` checkpoints like the first; of one where all are too many."""
    one = _bytes_needed(probes.load(0))
    return one * count if one * count <= _resident_budget(task.device) else one


def _resident_budget(device: torch.device) -> float:
    if device.type == "cuda":
        return _RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return _RESIDENT_SHARE * torch.mps.recommended_max_memory()
    sysconf: Any = getattr(os, "sysconf", None)
    if sysconf is None:  # Windows
        return 2**30
    return _RESIDENT_SHARE * float(sysconf("SC_PHYS_PAGES")) * float(sysconf("SC_PAGE_SIZE"))
