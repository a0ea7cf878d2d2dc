"""Derivatives of a number with respect to the state of a training, and what a step does to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from diffin.vectors import Vector


@dataclass(frozen=True)
class Adjoint:
    """Derivative of a number with respect to everything a later step depends on.

    Attributes:
        parameters: with respect to the parameters.
        buffers: to the floating-point buffers, through which batch normalisation reaches the query.
        slots: to the memory of the optimizer.
    """

    parameters: Vector
    buffers: Vector
    slots: dict[str, Vector]

    def packed(self) -> Vector:
        """All tensors under names of their own, to be saved."""
        parts = {"parameters": self.parameters, "buffers": self.buffers}
        parts |= {f"slots:{key}": vector for key, vector in self.slots.items()}
        return {f"{part}/{name}": t for part, vector in parts.items() for name, t in vector.items()}

    @staticmethod
    def unpacked(tensors: Mapping[str, Tensor]) -> Adjoint:
        """What was packed."""
        adjoint = Adjoint({}, {}, {})
        for full_name, tensor in tensors.items():
            part, _, name = full_name.partition("/")
            if part == "parameters":
                adjoint.parameters[name] = tensor
            elif part == "buffers":
                adjoint.buffers[name] = tensor
            else:
                adjoint.slots.setdefault(part.removeprefix("slots:"), {})[name] = tensor
        return adjoint

    def flat(self) -> list[Tensor]:
        """All tensors, in an order of their own."""
        slots = [t for key in sorted(self.slots) for t in self.slots[key].values()]
        return [*self.parameters.values(), *self.buffers.values(), *slots]

    def completed(self, after: Adjoint) -> Adjoint:
        """In the order of ``after``, which one that was stored does not have; zeros for what nothing later depends on."""

        def matched(part: Vector, reference: Vector) -> Vector:
            return {name: part[name] if name in part else torch.zeros_like(t) for name, t in reference.items()}

        return Adjoint(
            matched(self.parameters, after.parameters),
            matched(self.buffers, after.buffers),
            {key: matched(self.slots.get(key, {}), vector) for key, vector in after.slots.items()},
        )

    def to(self, device: torch.device) -> Adjoint:
        return Adjoint.unpacked({name: t.to(device) for name, t in self.packed().items()})


@dataclass(frozen=True)
class PulledBack:
    """A step, seen from its end, for Q numbers and the B samples of its batch.

    Attributes:
        adjoints: before the step, one for each number.
        sensitivities: Float[Tensor, "Q B"], derivative of each number with respect to the weight of each sample.
        directions: derivative of each number with respect to the gradient that the step took; the sensitivity of a sample
            is its share of the batch times the inner product of its own gradient with this.
        losses: Float[Tensor, "B"], of the samples, as the step saw them.
    """

    adjoints: list[Adjoint]
    sensitivities: Tensor
    directions: list[Vector]
    losses: Tensor
