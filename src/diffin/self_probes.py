"""What to measure at a checkpoint for self-influence: a quadratic form of the sample's own gradient.

A probe of a query is linear in the gradient of the sample. With the sample as its own query, the estimators ask instead for

    weight * ( n(z) + sum over i of  lambda_i (D_{v_i} l_z)^2 ),

    n(z)  =  < g_z, E g_z >                                       without a drift,
    n(z)  =  < E g_z, H_z d >  =  1/2 D_d < g_z, E g_z >          with a drift d,

E the diagonal of learning rates by parameter. The directions v_i and the numbers lambda_i stand for a matrix of low rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

from torch import Tensor

from diffin import vectors
from diffin.errors import ProbeError
from diffin.vectors import Vector


@dataclass(frozen=True)
class SelfProbe:
    """One number to ask of every sample about itself: ``weight * (n(z) + sum_i lambda_i (D_{v_i} l_z)^2)``.

    Attributes:
        weight: multiplies what is measured; the self-influence of a sample is the sum over all probes.
        rates: E, by parameter name.
        drift: d, or ``None`` for the squared norm itself.
        squares: pairs of lambda_i and v_i.
        curvature: for a probe that leaves the matrix of the squares to the exact mode: how many samples its Hessian is of
            (0: all), and the key they were drawn by.
    """

    weight: float
    rates: dict[str, float]
    drift: Vector | None = None
    squares: tuple[tuple[float, Vector], ...] = ()
    curvature: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for value, vector in (*self.squares, *([] if self.drift is None else [(0.0, self.drift)])):
            if not (isfinite(value) and vectors.is_finite(vector)):
                raise ProbeError(
                    "a direction of the probe is not finite: the gradient or Hessian product of the curvature set overflowed "
                    "at this checkpoint"
                )

    def vectors(self) -> list[Vector]:
        """Everything in it that is as large as the parameters."""
        return [*([] if self.drift is None else [self.drift]), *(vector for _, vector in self.squares)]

    def tensors(self) -> dict[str, Tensor]:
        """What goes into a file of tensors."""
        roles = {f"s{number:03d}": vector for number, (_, vector) in enumerate(self.squares)}
        if self.drift is not None:
            roles["d"] = self.drift
        return {f"{role}/{name}": t for role, vector in roles.items() for name, t in vector.items()}

    def to_json(self) -> dict[str, Any]:
        """What goes into the index, the weight apart."""
        return {
            "rates": self.rates,
            "drift": self.drift is not None,
            "values": [value for value, _ in self.squares],
            "curvature": None if self.curvature is None else list(self.curvature),
        }

    @classmethod
    def read(cls, weight: float, content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> SelfProbe:
        """Make one of what :meth:`to_json` and :meth:`tensors` gave.

        Raises:
            ProbeError: a direction is missing or lacks a parameter.
        """
        roles: dict[str, Vector] = {}
        for key, tensor in tensors.items():
            role, _, name = key.partition("/")
            roles.setdefault(role, {})[name] = tensor
        wanted = {f"s{number:03d}" for number in range(len(content["values"]))} | ({"d"} if content["drift"] else set())
        if set(roles) != wanted or any(set(vector) != set(content["rates"]) for vector in roles.values()):
            raise ProbeError(
                "a file of probes does not hold the directions that the index names; build the probes again"
            )
        squares = tuple((value, roles[f"s{number:03d}"]) for number, value in enumerate(content["values"]))
        curvature = None if content["curvature"] is None else tuple(content["curvature"])
        return cls(weight, dict(content["rates"]), roles.get("d"), squares, curvature)
