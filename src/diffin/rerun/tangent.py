"""Derivatives of the state of a training with respect to a number, and what a step makes of them.

This is forward-mode differentiation of the recorded steps: where :class:`diffin.rerun.Adjoint` asks how one number at the end
depends on every state, a tangent says how every state depends on one number at the start. Transposes of each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from diffin import vectors
from diffin.derivatives.composite import differentiable_statistics
from diffin.derivatives.hessian import HessianProduct, refuse_once_differentiable
from diffin.rerun.products import batch_product
from diffin.rerun.rerun import SATURATION, Rerun, leaves
from diffin.rerun.state import State, floating
from diffin.rerun.update import Memory, Slots
from diffin.vectors import Vector


@dataclass(frozen=True)
class Tangent:
    """Derivative, with respect to a number, of everything a later step depends on.

    Attributes:
        parameters: of the parameters.
        buffers: of the floating-point buffers.
        slots: of the memory of the optimizer.
    """

    parameters: Vector
    buffers: Vector
    slots: Slots

    @staticmethod
    def zero(state: State) -> Tangent:
        """That of a state which does not depend on the number."""

        def zeros(vector: Mapping[str, Tensor]) -> Vector:
            return {name: torch.zeros_like(t) for name, t in vector.items()}

        slots = {key: zeros(vector) for key, vector in state.memory.slots.items()}
        return Tangent(zeros(state.parameters), zeros(floating(state.buffers)), slots)

    def is_finite(self) -> bool:
        return all(map(vectors.is_finite, (self.parameters, self.buffers, *self.slots.values())))


def carry_forward(
    rerun: Rerun,
    state: State,
    tangent: Tangent,
    *,
    push: Mapping[str, Tensor] | None = None,
    weights: Tensor | None = None,
    hessian: HessianProduct = "exact",
    saturation: float = SATURATION,
) -> tuple[State, Tangent]:
    """The state after a step, and its tangent: the transpose of :meth:`Rerun.pull_back`.

    Args:
        rerun: the training; entered.
        state: before the step.
        tangent: before the step.
        push: what the number adds to the gradient that the step takes, by parameter; nothing to those it lacks.
        weights: Float[Tensor, "N"], derivative of the weight of every sample's loss in its batch; 0 by default. Of exact
            products only.
        hessian: ``"exact"``, the whole step differentiated; otherwise see :func:`diffin.rerun.products.batch_product`, which
            does not see buffers.
        saturation: see :func:`diffin.rerun.update.update`; 0 for the derivative as it is.

    Raises:
        DerivativeError: the gradient of the model cannot be differentiated.
    """
    if not rerun.order(state.step):
        return replace(state, step=state.step + 1, gradients=None), tangent
    after = rerun.advance(state, keep_gradients=True)
    gradients = after.gradients or {}
    if hessian != "exact":
        assert weights is None
        curved, buffers = batch_product(rerun, state, tangent.parameters, gradients, hessian), tangent.buffers
    else:
        curved, buffers = _differentiated(rerun, state, tangent, weights)
    turned = {name: curved.get(name, torch.zeros_like(g)) for name, g in gradients.items()}
    for name, pushed in (push or {}).items():
        if name in turned:
            turned[name] = turned[name] + pushed

    parameters, slots = _updated(rerun, state, gradients, tangent, turned, saturation)
    return replace(after, gradients=None), Tangent(parameters, buffers, slots)


def _updated(
    rerun: Rerun, state: State, gradients: Vector, tangent: Tangent, turned: Vector, saturation: float
) -> tuple[Vector, Slots]:
    """Tangents of parameters and optimizer memory after a step, from those before it and that of its gradient."""
    before, found = leaves(state.parameters), leaves(gradients)
    held = {key: leaves(vector) for key, vector in state.memory.slots.items()}
    inputs, along = [*before.values(), *found.values()], [*(tangent.parameters[n] for n in before), *turned.values()]
    for key, vector in held.items():
        for name, t in vector.items():
            inputs.append(t)
            along.append(tangent.slots.get(key, {}).get(name, torch.zeros_like(t)))
    with torch.enable_grad():
        memory = Memory(held, state.memory.counts)
        moved, memory = rerun.moved(state.step, before, memory, found, saturation=saturation)
        outputs = [*moved.values(), *(t for vector in memory.slots.values() for t in vector.values())]
        values = iter(_forward_mode(outputs, inputs, along))
    parameters = {name: next(values) for name in moved}
    return parameters, {key: {name: next(values) for name in vector} for key, vector in memory.slots.items()}


def _differentiated(rerun: Rerun, state: State, tangent: Tangent, weights: Tensor | None) -> tuple[Vector, Vector]:
    """Tangents of the gradient that the step takes, and of the buffers after it.

    The order of derivatives is free: that of the gradient along the tangent is the gradient of < gradient, tangent >.
    """
    rerun.set_generators(state)
    parameters = leaves(state.parameters)
    old = leaves(floating(state.buffers))
    inputs = [*parameters.values(), *old.values()]
    along = [*(tangent.parameters[name] for name in parameters), *(tangent.buffers[name] for name in old)]
    with torch.enable_grad(), differentiable_statistics():
        # A copy each: the model updates its statistics in place, and leaves cannot be written to.
        buffers = {n: old[n].clone() if n in old else t.clone() for n, t in state.buffers.items()}
        objective, losses = rerun.objective(state.step, parameters, buffers, None)
        found = torch.autograd.grad(objective, inputs, create_graph=True, allow_unused=True)
        if not rerun.refused_kernels:
            refuse_once_differentiable([g for g in found if g is not None])
            rerun.refused_kernels = True
        terms = [(g * t).sum() for g, t in zip(found, along, strict=True) if g is not None and g.requires_grad]
        if weights is not None:
            terms.append((losses * _shares(rerun, state.step, weights)).sum())
        curved = _gradient(terms, list(parameters.values()))
        statistics = floating(buffers)
        values = _forward_mode(list(statistics.values()), inputs, along)
    kept = {name: c for name, c in zip(parameters, curved, strict=True) if c is not None}
    return kept, dict(zip(statistics, values, strict=True))


def _shares(rerun: Rerun, step: int, weights: Tensor) -> Tensor:
    """Float[Tensor, "B"]: derivative of what every loss of the batch is multiplied by."""
    indices = torch.from_numpy(np.concatenate([part.indices for part in rerun.order(step)]))
    shares = torch.cat(
        [torch.full((len(part.indices),), part.share, dtype=torch.float64) for part in rerun.order(step)]
    )
    return weights[indices.to(weights.device)] * shares.to(weights)


def _forward_mode(outputs: list[Tensor], inputs: list[Tensor], along: list[Tensor]) -> list[Tensor]:
    """Derivatives of the outputs along a direction in the inputs, by differentiating a backward pass by what it is given.

    A backward pass is linear in that. It takes no rule for forward mode, of which PyTorch has some in Python: on small
    tensors those take several times as long.
    """
    used = [t for t in outputs if t.requires_grad]
    if not used:
        return [torch.zeros_like(t) for t in outputs]
    given = [torch.zeros_like(t, requires_grad=True) for t in used]
    found = torch.autograd.grad(used, inputs, given, create_graph=True, allow_unused=True)
    terms = [(f * t).sum() for f, t in zip(found, along, strict=True) if f is not None]
    tangents = iter(_gradient(terms, given))
    computed = [next(tangents) if t.requires_grad else None for t in outputs]
    return [torch.zeros_like(t) if c is None else c for t, c in zip(outputs, computed, strict=True)]


def _gradient(terms: list[Tensor], inputs: list[Tensor]) -> tuple[Tensor | None, ...]:
    if not terms:
        return (None,) * len(inputs)
    return torch.autograd.grad(sum(terms[1:], terms[0]), inputs, retain_graph=True, allow_unused=True)
