"""What to measure at a checkpoint for self-influence along a whole training: gradients there against those at its end.

The influence of a sample on its own final loss is a sum over segments of ``< D g_z(end), g_z >``, D the linear map that
carries a gradient from the end of the training to the direction of the segment. An estimator that knows D on r vectors
u_j, and of everything else a diagonal d, asks for

    weight * ( sum over j of  < b_j, g_z(end) > < D u_j - d u_j, g_z >  +  < d g_z(end), g_z > ),

b_j being what reads the share of u_j in a gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from diffin import vectors
from diffin.errors import ProbeError
from diffin.vectors import Vector


@dataclass(frozen=True, eq=False)
class End:
    """What the probes of all checkpoints have in common.

    Attributes:
        state: every tensor of the model after the training, by name.
        basis: b_1 to b_r, stacked: Float[Tensor, "r *shape"] by parameter name.
    """

    state: dict[str, Tensor]
    basis: Vector

    def tensors(self) -> dict[str, Tensor]:
        """What goes into a file of tensors."""
        return _in_parts(state=self.state, basis=self.basis)

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], parameters: Sequence[str]) -> End:
        """Make one of what :meth:`tensors` gave.

        Raises:
            ProbeError: it holds other parameters.
        """
        state, basis = _parts(tensors, "state", "basis")
        _check(basis, parameters)
        return cls(state, basis)


@dataclass(frozen=True)
class AcrossProbe:
    """One number to ask of every sample about its gradients at two states.

    Attributes:
        weight: multiplies what is measured; the self-influence of a sample is the sum over all probes.
        end: the other state, and what to read of the gradient there.
        rest: d, by parameter name: Float[Tensor, "*shape"].
        directions: D u_j - d u_j, stacked like the basis.
    """

    weight: float
    end: End
    rest: Vector
    directions: Vector

    def __post_init__(self) -> None:
        if not all(map(vectors.is_finite, (self.end.basis, self.rest, self.directions))):
            raise ProbeError(
                "a direction of the probe is not finite: the gradient or Hessian product of the curvature set overflowed at "
                "this checkpoint"
            )

    def tensors(self) -> dict[str, Tensor]:
        """What goes into a file of tensors, the end apart."""
        return _in_parts(rest=self.rest, directions=self.directions)

    @classmethod
    def read(cls, weight: float, end: End, tensors: Mapping[str, Tensor]) -> AcrossProbe:
        """Make one of what :meth:`tensors` gave.

        Raises:
            ProbeError: a direction lacks a parameter.
        """
        rest, directions = _parts(tensors, "rest", "directions")
        for part in (rest, directions):
            _check(part, list(end.basis))
        return cls(weight, end, rest, directions)


def _in_parts(**parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{part}/{name}": t for part, vector in parts.items() for name, t in vector.items()}


def _parts(tensors: Mapping[str, Tensor], *wanted: str) -> list[Vector]:
    prefixes = [f"{part}/" for part in wanted]
    return [
        {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)} for prefix in prefixes
    ]


def _check(part: Vector, parameters: Sequence[str]) -> None:
    if set(part) != set(parameters):
        raise ProbeError("a file of probes does not hold the parameters that the index names; build the probes again")
