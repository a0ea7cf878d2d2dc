"""Exact directional derivatives by forward-mode differentiation, nested once for the second order.

Both terms of a second-order probe come from a single nesting. With ``g(theta, d) = D_d l(theta)``, the derivative of g
at (theta, d) along (v, u) is ``D2_{v,d} l + D_u l``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from diffin import vectors
from diffin.batches import Batch
from diffin.derivatives.base import Measure, Measured, as_float64
from diffin.derivatives.composite import jvp, nested_forward_mode
from diffin.probes import Probe
from diffin.task import PerSampleLoss
from diffin.vectors import Vector


@dataclass(frozen=True)
class Forward:
    """``torch.func.jvp`` of the losses; attention and layer normalisation run by their composite formulas meanwhile."""

    name: ClassVar[str] = "forward"

    def describe(self) -> dict[str, Any]:
        return {"name": self.name}

    def prepare(self, loss: PerSampleLoss, probe: Probe) -> Measure:
        theta = loss.parameters
        u = vectors.like(probe.u, theta)
        mixed = probe.mixed and (vectors.like(probe.mixed[0], theta), vectors.like(probe.mixed[1], theta))

        def measure(batch: Batch) -> Measured:
            def measured(point: Vector) -> tuple[Tensor, Tensor]:
                outcome = loss.outcome(point, batch)
                return outcome.losses, outcome.effects()

            def along(point: Vector, direction: Vector) -> tuple[Tensor, Tensor]:
                (losses, _), (_, tangent) = jvp(measured, (point,), (direction,))
                return losses, tangent

            with nested_forward_mode():
                if mixed is None:
                    losses, derivative = along(theta, u)
                else:
                    v, d = mixed
                    (losses, _), (_, derivative) = jvp(along, (theta, d), (v, u))
            return Measured(as_float64(losses), as_float64(derivative))

        return measure
