"""Measuring the gradients of each sample at two states of a training against each other (see :mod:`diffin.across_probes`).

Both are formed one parameter at a time, in step, B x p numbers each; nothing is differenced.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from diffin import vectors
from diffin.across_probes import AcrossProbe
from diffin.batches import Batch
from diffin.derivatives.base import Measure, Measured, as_float64
from diffin.derivatives.own import not_of_self
from diffin.derivatives.per_sample import PerSampleGradients
from diffin.derivatives.rows import pairs, times
from diffin.errors import DerivativeError
from diffin.probes import Probe
from diffin.self_probes import SelfProbe
from diffin.task import PerSampleLoss, refuse_coupled


@dataclass(frozen=True)
class OwnAcross:
    """Per-sample gradients at a checkpoint and at the end of the training, times directions and times each other."""

    name: ClassVar[str] = "own-across"

    def describe(self) -> dict[str, Any]:
        return {"name": self.name}

    def prepare(self, loss: PerSampleLoss, probe: Probe) -> Measure:
        raise not_of_self(self.name)

    def prepare_own(self, loss: PerSampleLoss, probe: SelfProbe | AcrossProbe) -> Measure:
        refuse_coupled(loss.task, "self-influence")
        if not isinstance(probe, AcrossProbe):
            raise DerivativeError("these probes are of one state; measure them by derivatives='auto'")
        last = PerSampleLoss(loss.task, probe.end.state, loss.names)
        here, there = PerSampleGradients(loss), PerSampleGradients(last)
        basis, rest, directions = (
            vectors.like(part, loss.parameters) for part in (probe.end.basis, probe.rest, probe.directions)
        )

        def measure(batch: Batch) -> Measured:
            losses, rows = here.rows(batch)
            _, final = there.rows(batch)
            shares = answers = apart = losses.new_zeros(())
            for name, one, other in pairs(rows, final):
                shares = shares + times(other, basis[name])
                answers = answers + times(one, directions[name])
                apart = apart + as_float64(torch.linalg.vecdot((other * rest[name]).flatten(1), one.flatten(1)))
            return Measured(losses, (shares * answers).sum(dim=1) + apart)

        return measure
