"""Measuring the directions of Q queries on every sample: per-sample gradients, layer by layer, times directions.

The gradients of a batch are formed one parameter at a time, B x p, and multiplied with the p x Q directions there; neither
N x P nor N x Q numbers are ever held. A block of batches is read, and every state of the training is loaded once for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from diffin import vectors
from diffin.attribution.directions import Directions
from diffin.batches import Batch, nbytes
from diffin.derivatives.base import Measure, Measured, refuse_half_precision
from diffin.derivatives.hessian import difference_step
from diffin.derivatives.per_sample import PerSampleGradients
from diffin.derivatives.rows import pairs, summed, times
from diffin.errors import TaskError
from diffin.memory import from_sample_bytes, power_of_two
from diffin.probes import CheckpointProbes, Probe, ProbeSet
from diffin.sample import Sample
from diffin.scoring import batching
from diffin.scoring.columns import Floats
from diffin.sources import Indices
from diffin.task import PerSampleLoss, Task, frozen

_BLOCK_BYTES = 2**26
_ROWS_BYTES = 2**25
_MEASURED_FIRST = 16


class Engine:
    """Measures all directions. Use it inside :func:`diffin.task.frozen`.

    Args:
        task: model and loss.
        directions: of Q queries.
        block_rows: how many samples are held, at most, while the states are loaded in turn.
        block_bytes: how many bytes of samples.
    """

    def __init__(self, task: Task, directions: Directions, *, block_rows: int, block_bytes: int = _BLOCK_BYTES) -> None:
        self._task, self._directions = task, directions
        self._block_rows, self._block_bytes = block_rows, block_bytes
        self._back_off = batching.BackOff()

    def measure(
        self, batches: Iterable[tuple[Indices, Batch]], advance: Callable[[int], None] = lambda amount: None
    ) -> Iterator[tuple[Indices, Floats]]:
        """Measure block after block.

        Args:
            batches: indices and samples.
            advance: called with the number of samples that have been measured since the last call.

        Yields:
            Indices, and the influence of each of those samples on every query, Float64[ndarray, "B Q"]; what is not finite in
            a row says that the sample has none.
        """
        for block in self._blocks(batches):
            index, influence = np.concatenate([indices for indices, _ in block]), self._measured(block, advance)
            del block  # the next one is read before it is called by this name
            yield index, influence

    def _measured(self, block: list[tuple[Indices, Batch]], advance: Callable[[int], None]) -> Floats:
        ends = np.cumsum([0, *self._directions.sizes])
        passes = len(self._directions.steps) * len(self._directions.blocks)
        influence = np.zeros((sum(len(indices) for indices, _ in block), int(ends[-1])))
        measured = told = 0
        for position in range(len(self._directions.steps)):
            for number, probes in enumerate(self._directions.blocks):
                measure = self._measure(probes, position)
                first = 0
                for indices, batch in block:
                    last = first + len(indices)
                    influence[first:last, ends[number] : ends[number + 1]] += measure(batch, len(indices))
                    # A block may take long: a sample measured in some of the passes counts as that share of one.
                    measured += len(indices)
                    advance(measured // passes - told)
                    told, first = measured // passes, last
        return influence

    def batch_size(self, sample: Sample) -> int:
        """How many samples to measure at once: what suits their size and that of the rows of the largest parameter."""
        probes = self._directions.blocks[0]
        first = probes.load(0)
        largest = max(t[0].numel() * t.element_size() for t in first.probes[0].u.values())
        if first.probes[0].mixed is not None:
            largest *= 4  # rows at two states, their sum and their difference
        if self._task.device.type != "cuda":
            return min(from_sample_bytes(sample.batch, sample.count), power_of_two(_ROWS_BYTES / largest))
        few = sample.thinned(_MEASURED_FIRST)
        with frozen(self._task.model):
            return batching.from_free_memory(few.batch, few.count, self._task.device, self._measure(probes, 0))

    def _blocks(self, batches: Iterable[tuple[Indices, Batch]]) -> Iterator[list[tuple[Indices, Batch]]]:
        block: list[tuple[Indices, Batch]] = []
        held = rows = 0
        for indices, batch in batches:
            block.append((indices, batch))
            held += nbytes(batch)
            rows += len(indices)
            del batch
            if held >= self._block_bytes or rows >= self._block_rows:
                ready, block, held, rows = block, [], 0, 0
                yield ready
                del ready
        if block:
            yield block

    def _measure(self, probes: ProbeSet, position: int) -> Callable[[Batch, int], Floats]:
        """What a state says of a batch, for a block of queries: Float64[ndarray, "B q"]."""
        checkpoint: CheckpointProbes = probes.load(position)
        loss = PerSampleLoss(self._task, checkpoint.state, list(probes.parameters))
        measures = [(probe.weight, prepare(loss, probe)) for probe in checkpoint.probes]

        def measured(batch: Batch, size: int) -> Floats:
            batch = loss.to_device(batch)
            total: Tensor | None = None
            for weight, measure in measures:
                one = self._back_off(measure, batch, size)
                if len(one.losses) != size:
                    raise TaskError(
                        f"a batch of {size} samples gave {len(one.losses)} losses; the collate function must make a batch of "
                        "as many samples as it was given"
                    )
                # An infinite loss can have a finite gradient, and is a failure all the same.
                term = weight * one.derivatives + torch.where(torch.isfinite(one.losses), 0.0, torch.nan)[:, None]
                total = term if total is None else total + term
            assert total is not None  # every state has a probe
            result: Floats = total.cpu().numpy()
            return result

        return measured


def prepare(loss: PerSampleLoss, probe: Probe) -> Measure:
    """Measures a probe of stacked directions: the derivatives are Float64[Tensor, "B Q"], without the weight.

    The mixed derivative ``<v_q, H_z d>`` is a central difference of per-sample gradients at ``theta +- e d``, and
    ``<u_q, g_z>`` is taken of their mean there, which agrees to second order in e.
    """
    u = vectors.like(probe.u, loss.parameters)
    step = 0.0
    if probe.mixed is not None:
        refuse_half_precision(loss)
        v, d = (vectors.like(part, loss.parameters) for part in probe.mixed)
        step = difference_step(loss.parameters, d, order=2)
    if probe.mixed is None or step == 0:
        gradients = PerSampleGradients(loss)

        def first_order(batch: Batch) -> Measured:
            losses, rows = gradients.rows(batch)
            return Measured(losses, summed(times(row, u[name]) for name, row in rows))

        return first_order
    ahead = PerSampleGradients(loss, vectors.add(loss.parameters, d, step))
    behind = PerSampleGradients(loss, vectors.add(loss.parameters, d, -step))

    def second_order(batch: Batch) -> Measured:
        (loss_ahead, plus), (loss_behind, minus) = ahead.rows(batch), behind.rows(batch)
        terms = (times(a - b, v[name]) / (2 * step) + times(a + b, u[name]) / 2 for name, a, b in pairs(plus, minus))
        return Measured((loss_ahead + loss_behind) / 2, summed(terms))

    return second_order
