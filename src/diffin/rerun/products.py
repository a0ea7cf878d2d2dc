"""Products with the curvature of a step that need first derivatives of the model only, and what they do to an adjoint."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from diffin import vectors
from diffin.derivatives.base import refuse_half_precision
from diffin.derivatives.gauss_newton import batch_gauss_newton
from diffin.derivatives.hessian import HessianProduct, difference_step, refuse_once_differentiable
from diffin.rerun.adjoint import Adjoint
from diffin.rerun.rerun import SATURATION, Rerun
from diffin.rerun.state import State
from diffin.rerun.update import Memory, Slots
from diffin.vectors import Vector


def carry_back(
    rerun: Rerun,
    state: State,
    adjoint: Adjoint,
    gradients: Vector,
    *,
    hessian: HessianProduct = "difference",
    saturation: float = SATURATION,
) -> tuple[Adjoint, Vector]:
    """The adjoint before a step, and the direction of that step, as :meth:`Rerun.pull_back` has them.

    The update of the optimizer is differentiated as it is; see :func:`batch_product` for that of the model.

    Args:
        rerun: the training; entered.
        state: before the step.
        adjoint: after the step. What it says of buffers is lost: a model whose statistics are differentiated needs
            `pull_back`.
        gradients: of the step.
        hessian: ``"difference"``, ``"gauss-newton"`` or ``"exact"``.
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
    curved = batch_product(rerun, state, direction, gradients, hessian)
    return Adjoint(vectors.add(parameters, curved), {}, before), direction


def batch_product(
    rerun: Rerun,
    state: State,
    direction: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    hessian: HessianProduct,
) -> Vector:
    """The curvature of the objective of a step times a direction; zero where the batch says nothing.

    By ``"difference"`` it is that of gradients, ``(g(theta + e u) - g(theta)) / e`` (Eq. 6 of Tan et al.), of which the
    second was taken by the step itself, so that a step costs one gradient. Its e displaces the parameters by the root of the
    machine epsilon of their norm. By ``"gauss-newton"`` it is that of the loss in the outputs of the model only, and by
    ``"exact"`` the gradient is differentiated. What processes find of their shares is added up.
    """
    if hessian == "exact":
        return _exact(rerun, state, direction)
    if hessian == "gauss-newton":
        return _gauss_newton(rerun, state, direction)
    refuse_half_precision(rerun.loss)
    total = vectors.zeros_like(state.parameters)
    e = difference_step(state.parameters, direction, order=1)
    if e:
        ahead = {n: t + e * direction[n] if n in direction else t for n, t in state.parameters.items()}
        found, _ = rerun.gradients(state, ahead)
        for name, gradient in gradients.items():
            total[name] = (found[name] - gradient) / e
    return total


def _gauss_newton(rerun: Rerun, state: State, direction: Mapping[str, Tensor]) -> Vector:
    total = vectors.zeros_like(state.parameters)
    along = {n: direction[n] if n in direction else torch.zeros_like(t) for n, t in state.parameters.items()}
    rerun.set_generators(state)
    # A copy: a model in training mode writes its statistics.
    buffers = {name: t.clone() for name, t in state.buffers.items()}
    for taken, batch in rerun.parts(state.step, own=rerun.shared):
        _, product = batch_gauss_newton(rerun.loss, batch, along, at=state.parameters, beside=buffers)
        for tensor, part in zip(total.values(), product, strict=True):
            if part is not None:
                tensor.add_(part, alpha=taken.share)
    return rerun.ranks.summed(total) if rerun.shared else total


def _exact(rerun: Rerun, state: State, direction: Mapping[str, Tensor]) -> Vector:
    rerun.set_generators(state)
    buffers = {name: t.clone() for name, t in state.buffers.items()}
    parameters = {name: t.detach().requires_grad_() for name, t in state.parameters.items()}
    with torch.enable_grad():
        objective, _ = rerun.objective(state.step, parameters, buffers, None, own=rerun.shared)
        gradients = rerun.gradients_of(objective, parameters, create_graph=True)
        bent = {name: g for name, g in gradients.items() if g.requires_grad and name in direction}
        if not rerun.refused_kernels:
            refuse_once_differentiable(bent.values())
            rerun.refused_kernels = True
        product = sum((g * direction[name]).sum() for name, g in bent.items())
    found = rerun.gradients_of(product, parameters) if isinstance(product, Tensor) else {}
    total = {name: found[name] if name in found else torch.zeros_like(t) for name, t in state.parameters.items()}
    return rerun.ranks.summed(total) if rerun.shared else total
