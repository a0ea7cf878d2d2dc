"""Directional derivatives by central differences of plain losses: nothing but forward passes in inference mode.

Along u, two forwards:

    D_u l  =  ( l(theta + h u) - l(theta - h u) ) / 2h  +  O(h^2).

A whole second-order probe, four forwards: with x = a v, y = b d and w = a b u,

    S = l(+x +y +w) - l(+x -y -w) - l(-x +y -w) + l(-x -y +w)        (at theta)
    D_u l + D2_{v,d} l  =  S / 4ab  +  O(a^2 + b^2),

because in S every odd and every pure second-order term cancels except the first derivative along w and the mixed one
along x and y. Displacements are given as a fraction of the norm of the parameters, so that one number, ``step``, suits
every direction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from diffin import vectors
from diffin.batches import Batch
from diffin.derivatives.base import Measure, Measured, as_float64, refuse_half_precision
from diffin.errors import DerivativeError
from diffin.probes import Probe
from diffin.task import PerSampleLoss
from diffin.vectors import Vector


@dataclass(frozen=True)
class Difference:
    """Central differences of losses.

    Attributes:
        step: length of each displacement over the norm of the parameters.
    """

    step: float
    name: ClassVar[str] = "difference"

    def __post_init__(self) -> None:
        refuse_step(self.step)

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "step": self.step}

    def prepare(self, loss: PerSampleLoss, probe: Probe) -> Measure:
        refuse_half_precision(loss)
        terms, divisor = _stencil(loss.parameters, probe, self.step)

        def measure(batch: Batch) -> Measured:
            with torch.inference_mode():
                losses, signed = [], []
                for sign, displaced in terms:
                    outcome = loss.outcome(displaced, batch)
                    losses.append(as_float64(outcome.losses))
                    if divisor:
                        signed.append(sign * as_float64(outcome.effects()))
                mean = torch.stack(losses).mean(dim=0)
                if not divisor:
                    return Measured(mean, torch.zeros_like(mean))
                return Measured(mean, torch.stack(signed).sum(dim=0) / divisor)

        return measure


def refuse_step(step: float) -> None:
    """Raise if ``step`` is not a fraction of the norm of the parameters."""
    if not 0 < step < 1:
        raise DerivativeError(f"step={step!r}: pass a fraction of the norm of the parameters, e.g. 1e-3")


def unit_step(parameters: Mapping[str, Tensor], vector: Mapping[str, Tensor], step: float) -> float:
    """The factor that makes ``vector`` as long as ``step`` times the parameters; 0 for a zero vector."""
    length = vectors.norm(vector)
    return step * (vectors.norm(parameters) or 1.0) / length if length else 0.0


def _stencil(parameters: Vector, probe: Probe, step: float) -> tuple[list[tuple[float, Vector]], float]:
    """Signed points at which to take the loss, and what to divide their sum by (0: the derivative is zero)."""
    h = unit_step(parameters, probe.u, step)
    if probe.mixed is not None:
        v, d = probe.mixed
        a, b = unit_step(parameters, v, step), unit_step(parameters, d, step)
        if a and b:
            # Near a minimum d is tiny, so b is huge and w = a b u would leave the linear regime: shorten both.
            shrink = min(1.0, (h / (a * b)) ** 0.5) if h else 1.0
            a, b = a * shrink, b * shrink
            signs = ((1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1))
            points = [
                (float(x * y), _displace(parameters, ((x * a, v), (y * b, d), (w * a * b, probe.u))))
                for x, y, w in signs
            ]
            return points, 4 * a * b
    if not h:
        return [(1.0, parameters)], 0.0
    return [(1.0, _displace(parameters, ((h, probe.u),))), (-1.0, _displace(parameters, ((-h, probe.u),)))], 2 * h


def _displace(parameters: Vector, moves: tuple[tuple[float, Vector], ...]) -> Vector:
    """``parameters + sum of factor * vector``, summed in float64 where the device has it and rounded once."""
    displaced = {}
    for name, tensor in parameters.items():
        wide = tensor.dtype if tensor.device.type == "mps" else torch.float64
        total = tensor.to(wide)
        for factor, vector in moves:
            total = torch.add(total, vector[name].to(total), alpha=factor)
        displaced[name] = total.to(tensor.dtype)
    return displaced
