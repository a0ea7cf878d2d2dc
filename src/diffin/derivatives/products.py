"""Products of one Hessian with several vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from diffin import vectors
from diffin.derivatives.composite import composite_attention
from diffin.derivatives.gradient import SampleSet, add_gradients, finite_losses, leaves
from diffin.derivatives.hessian import refuse_once_differentiable
from diffin.task import PerSampleLoss
from diffin.vectors import Vector


def hessian_vector_products(
    loss: PerSampleLoss, samples: SampleSet, directions: Sequence[Mapping[str, torch.Tensor]]
) -> list[Vector]:
    """``H v`` for every v, H the Hessian of the mean loss over a set, which is read once.

    The gradient of a batch is taken once and differentiated as often as there are vectors.

    Raises:
        DerivativeError: a loss is not finite, the set is empty, or an operation has no second derivative.
    """
    point = leaves(loss.parameters)
    totals = [vectors.zeros_like(point) for _ in directions]
    count = 0
    with composite_attention():
        for losses in finite_losses(loss, point, samples):
            found = torch.autograd.grad(losses.sum(), list(point.values()), create_graph=True, allow_unused=True)
            # A parameter that the loss is linear in, or does not use, has no second derivative to follow.
            gradients = {n: g for n, g in zip(point, found, strict=True) if g is not None and g.requires_grad}
            if gradients and count == 0:
                refuse_once_differentiable(gradients.values())
            for total, direction in zip(totals, directions, strict=True) if gradients else ():
                along = [direction[name].to(g) for name, g in gradients.items()]
                second = torch.autograd.grad(
                    list(gradients.values()), list(point.values()), along, retain_graph=True, allow_unused=True
                )
                add_gradients(total, second)
            count += len(losses)
    totals, count, _ = samples.summed(totals, count)
    return [vectors.scale(total, 1 / count) for total in totals]
