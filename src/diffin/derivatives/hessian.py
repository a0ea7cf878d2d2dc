"""Products of the Hessian of a mean loss with a vector, streamed over batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor

from diffin import vectors
from diffin.derivatives.base import refuse_half_precision
from diffin.derivatives.composite import composite_attention
from diffin.derivatives.gauss_newton import gauss_newton_product
from diffin.derivatives.gradient import SampleSet, add_gradients, finite_losses, leaves, mean_gradient
from diffin.derivatives.kinks import graph
from diffin.errors import DerivativeError
from diffin.task import PerSampleLoss
from diffin.vectors import Vector

HessianProduct = Literal["exact", "difference", "gauss-newton"]
"""How a product with the Hessian of a mean loss is taken, or one with the Gauss-Newton matrix in its place."""

PRODUCTS = "'exact', 'difference' or 'gauss-newton'"

_ERROR_NODES = frozenset(("torch::autograd::Error", "DelayedError"))


def hessian_vector_product(
    loss: PerSampleLoss, samples: SampleSet, vector: Mapping[str, Tensor], *, method: HessianProduct = "exact"
) -> Vector:
    """``H v`` for H the Hessian of the mean loss over a set.

    Args:
        loss: the losses as a function of the parameters.
        samples: the set, read twice for ``difference``, once otherwise.
        vector: v, by parameter name.
        method: ``"exact"`` differentiates the gradient (reverse over reverse); ``"difference"`` is
            :func:`difference_product`, which needs first derivatives only and works with every attention kernel.
            ``"gauss-newton"`` is :func:`diffin.derivatives.gauss_newton.gauss_newton_product`.

    Raises:
        DerivativeError: a loss is not finite, the set is empty, or an operation has no second derivative.
    """
    if method == "difference":
        return difference_product(loss, samples, vector)
    if method == "exact":
        return _exact_product(loss, samples, vector)
    if method == "gauss-newton":
        return gauss_newton_product(loss, samples, vector)
    raise DerivativeError(f"hessian={method!r}: pass {PRODUCTS}")


def _exact_product(loss: PerSampleLoss, samples: SampleSet, vector: Mapping[str, Tensor]) -> Vector:
    point = leaves(loss.parameters)
    directions = list(vectors.like(vector, point).values())
    total = vectors.zeros_like(loss.parameters)
    count = 0
    with composite_attention():
        for losses in finite_losses(loss, point, samples):
            gradients = torch.autograd.grad(losses.sum(), list(point.values()), create_graph=True, allow_unused=True)
            # A parameter that the loss is linear in, or does not use, has no second derivative to follow.
            terms = [
                (g * v).sum() for g, v in zip(gradients, directions, strict=True) if g is not None and g.requires_grad
            ]
            if terms:
                if count == 0:
                    refuse_once_differentiable(terms)
                add_gradients(total, _second(torch.stack(terms).sum(), list(point.values())))
            count += len(losses)
    (total,), count, _ = samples.summed([total], count)
    return vectors.scale(total, 1 / count)


def _second(product: Tensor, parameters: list[Tensor]) -> tuple[Tensor | None, ...]:
    try:
        return torch.autograd.grad(product, parameters, allow_unused=True)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise DerivativeError(
            f"the gradient of the model cannot be differentiated again ({error}); pass hessian='difference'"
        ) from error


def difference_product(
    loss: PerSampleLoss, samples: SampleSet, vector: Mapping[str, Tensor], *, gradient: Vector | None = None
) -> Vector:
    """``(grad(theta + e v) - grad(theta - e v)) / 2e``: the central form of Eq. 6 of Tan et al.

    The step e displaces the parameters by ``cbrt(machine epsilon)`` of their norm, where the rounding of the gradients
    and the cubic term of the expansion balance. Given the ``gradient`` at theta, the difference is one-sided, as in the
    paper, at half the price, and displaces by the root of epsilon.
    """
    refuse_half_precision(loss)
    step = difference_step(loss.parameters, vector, order=2 if gradient is None else 1)
    if step == 0:
        return vectors.zeros_like(loss.parameters)
    if gradient is not None:
        ahead = mean_gradient(loss, samples, at=vectors.add(loss.parameters, vector, step)).gradient
        return vectors.scale(vectors.add(ahead, gradient, -1.0), 1 / step)
    ahead = mean_gradient(loss, samples, at=vectors.add(loss.parameters, vector, step)).gradient
    behind = mean_gradient(loss, samples, at=vectors.add(loss.parameters, vector, -step)).gradient
    return vectors.scale(vectors.add(ahead, behind, -1.0), 1 / (2 * step))


def difference_step(parameters: Mapping[str, Tensor], vector: Mapping[str, Tensor], *, order: int) -> float:
    """What to multiply the vector with for a difference whose error is of that order in it; 0 for a vector of zeros."""
    length = vectors.norm(vector)
    if length == 0:
        return 0.0
    precision = max(torch.finfo(t.dtype).eps for t in parameters.values())
    step: float = precision ** (1 / (order + 1)) * (vectors.norm(parameters) or 1.0) / length
    return step


def refuse_once_differentiable(tensors: Iterable[Tensor]) -> None:
    """Raise if a gradient in the graph of ``tensors`` came from an operation that says it can be differentiated once.

    Such an operation raises when its second derivative is asked for, but the engine never asks: it leaves out whatever does
    not lead to the leaves, and the product would silently lack a part.
    """
    for node in graph(tensors):
        if node.name() in _ERROR_NODES:
            raise DerivativeError(
                "an operation of the model is marked as differentiable once only (a custom kernel?), so the Hessian cannot "
                "be had by differentiating twice; pass hessian='difference'"
            )
