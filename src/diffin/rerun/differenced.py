"""What a step does to an adjoint, with first derivatives of the model only."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from diffin import vectors
from diffin.derivatives.base import refuse_half_precision
from diffin.derivatives.hessian import difference_step
from diffin.rerun.adjoint import Adjoint
from diffin.rerun.rerun import SATURATION, Rerun
from diffin.rerun.state import State
from diffin.rerun.update import Memory, Slots
from diffin.vectors import Vector


def carry_back(
    rerun: Rerun, state: State, adjoint: Adjoint, gradients: Vector, *, saturation: float = SATURATION
) -> tuple[Adjoint, Vector]:
    """The adjoint before a step, and the direction of that step, as :meth:`Rerun.pull_back` has them.

    The update of the optimizer is differentiated as it is. The product with the Hessian of the batch is a difference of
    gradients, ``(g(theta + e u) - g(theta)) / e`` (Eq. 6 of Tan et al.), of which the second was taken by the step itself, so
    that a step costs one gradient. Its e displaces the parameters by the root of the machine epsilon of their norm.

    Args:
        rerun: the training; entered.
        state: before the step.
        adjoint: after the step. What it says of buffers is lost: a model whose statistics are differentiated needs
            `pull_back`.
        gradients: of the step.
        saturation: see :func:`diffin.rerun.update.update`.
    """
    step = state.step

    def update(parameters: Vector, slots: Slots, gradients: Vector) -> tuple[Vector, Slots]:
        memory = Memory(slots, state.memory.counts)
        moved, memory = rerun.moved(step, parameters, memory, gradients, saturation=saturation)
        return moved, memory.slots

    (moved, slots), pull = torch.func.vjp(update, state.parameters, state.memory.slots, gradients)[:2]
    completed = adjoint.completed(Adjoint(moved, {}, slots))
    parameters, before, direction = pull((completed.parameters, completed.slots))
    return Adjoint(
        vectors.add(parameters, hessian_difference(rerun, state, direction, gradients)), {}, before
    ), direction


def hessian_difference(
    rerun: Rerun, state: State, direction: Mapping[str, Tensor], gradients: Mapping[str, Tensor]
) -> Vector:
    """The Hessian of the batch of a step times a direction; zero where the batch says nothing."""
    refuse_half_precision(rerun.loss)
    total = vectors.zeros_like(state.parameters)
    e = difference_step(state.parameters, direction, order=1)
    if e:
        ahead = {n: t + e * direction[n] if n in direction else t for n, t in state.parameters.items()}
        found, _ = rerun.gradients(state, ahead)
        for name, gradient in gradients.items():
            total[name] = (found[name] - gradient) / e
    return total
