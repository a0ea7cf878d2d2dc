"""One step of an optimizer as a function, so that it can be differentiated and mapped over many runs.

The formulas are those of ``torch.optim`` (SGD, Adam and AdamW, with every option that changes them). What the optimizer
keeps between steps is passed in and returned; nothing is written in place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffin.vectors import Vector

Slots = dict[str, Vector]
"""What an optimizer remembers: by key as in ``torch.optim`` (``momentum_buffer``, ``exp_avg``, ...), then by parameter."""


@dataclass(frozen=True)
class GroupStep:
    """What one step used for a parameter group.

    Attributes:
        names: its parameters.
        learning_rate: of the step.
        constants: as :meth:`diffin.trajectory.StepLog.constants` has them.
    """

    names: tuple[str, ...]
    learning_rate: float
    constants: Mapping[str, Any]


@dataclass(frozen=True)
class Memory:
    """What an optimizer carries from step to step.

    Attributes:
        slots: its tensors.
        counts: steps that each parameter has taken, for the bias correction of Adam.
    """

    slots: Slots
    counts: Mapping[str, int]


def update(
    kind: str,
    groups: Sequence[GroupStep],
    parameters: Mapping[str, Tensor],
    memory: Memory,
    gradients: Mapping[str, Tensor],
    *,
    saturation: float = 0.0,
) -> tuple[Vector, Memory]:
    """Parameters and memory after a step.

    Args:
        kind: ``"SGD"``, ``"Adam"`` or ``"AdamW"``.
        groups: the parameter groups with what the step uses.
        parameters: before the step.
        memory: before the step.
        gradients: of the parameters that have one; the others are left alone, as ``torch.optim`` does.
        saturation: for derivatives only. Where the root of Adam's second moment is below this share of its quadratic mean
            over the tensor, an update is all sign: nearly a step function of the gradient, whose derivative, zero or
            enormous, says nothing about any finite change. It is taken as given there.
    """
    parameters = dict(parameters)
    slots = {key: dict(vector) for key, vector in memory.slots.items()}
    counts = dict(memory.counts)
    for group in groups:
        for name in group.names:
            if name not in gradients:
                continue
            gradient = -gradients[name] if group.constants["maximize"] else gradients[name]
            if kind == "SGD":
                parameters[name] = _sgd(group, name, parameters[name], gradient, slots)
            else:
                counts[name] = counts.get(name, 0) + 1
                parameters[name] = _adam(group, name, parameters[name], gradient, slots, counts[name], saturation)
    return parameters, Memory(slots, counts)


def _sgd(group: GroupStep, name: str, parameter: Tensor, gradient: Tensor, slots: Slots) -> Tensor:
    constants = group.constants
    momentum = constants["momentum"]
    if constants["weight_decay"]:
        gradient = gradient + constants["weight_decay"] * parameter
    if momentum:
        buffers = slots.setdefault("momentum_buffer", {})
        # The first gradient starts the buffer whole, without dampening.
        buffer = gradient
        if name in buffers:
            buffer = momentum * buffers[name] + (1 - constants["dampening"]) * gradient
        buffers[name] = buffer
        gradient = gradient + momentum * buffer if constants["nesterov"] else buffer
    return parameter - group.learning_rate * gradient


def _adam(
    group: GroupStep,
    name: str,
    parameter: Tensor,
    gradient: Tensor,
    slots: Slots,
    count: int,
    saturation: float,
) -> Tensor:
    constants, rate = group.constants, group.learning_rate
    beta1, beta2 = constants["betas"]
    if constants["weight_decay"]:
        if constants["decoupled_weight_decay"]:
            parameter = parameter * (1 - rate * constants["weight_decay"])
        else:
            gradient = gradient + constants["weight_decay"] * parameter
    first, second = slots.setdefault("exp_avg", {}), slots.setdefault("exp_avg_sq", {})
    mean = (1 - beta1) * gradient + (beta1 * first[name] if name in first else 0.0)
    square = (1 - beta2) * gradient * gradient + (beta2 * second[name] if name in second else 0.0)
    first[name], second[name] = mean, square
    if constants["amsgrad"]:
        largest = slots.setdefault("max_exp_avg_sq", {})
        square = torch.maximum(largest[name], square) if name in largest else square
        largest[name] = square
    root = _root(square) / (1 - beta2**count) ** 0.5
    moved = rate / (1 - beta1**count) * mean / (root + constants["eps"])
    if saturation:
        typical = root.detach().square().mean().sqrt()
        moved = torch.where(root.detach() < saturation * typical, moved.detach(), moved)
    after: Tensor = parameter - moved
    return after


def _root(square: Tensor) -> Tensor:
    """The square root, with derivative 0 at 0: an input that was never active has moved nothing."""
    positive = square > 0
    return torch.where(positive, torch.where(positive, square, 1.0).sqrt(), 0.0)
