"""Products of the Gauss-Newton matrix: the curvature of the loss in its outputs, without that of the model.

For a loss that sees the model through its outputs z only, H = J' L J + sum over outputs of (d loss / d z) d2 z / d theta2,
with J = dz / dtheta and L the Hessian of the loss in z. The first term is the Gauss-Newton matrix G. It needs first
derivatives of the model only (one in forward mode, one in reverse), and for a convex loss it has no negative eigenvalue,
so that what is multiplied with I - eta G over and over does not grow.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from diffin import vectors
from diffin.batches import Batch
from diffin.derivatives.composite import composite_attention
from diffin.derivatives.gradient import SampleSet, add_gradients, finite, leaves
from diffin.errors import DerivativeError
from diffin.task import OutputTask, PerSampleLoss
from diffin.vectors import Vector

_forward: Any = forward_ad  # it has no types


def bears_gauss_newton(loss: PerSampleLoss, batch: Batch) -> bool:
    """Whether there are such products, tried on a batch on the device. Use it inside :func:`diffin.task.frozen`."""
    try:
        along_outputs(loss, loss.parameters, batch, loss.parameters)
    except DerivativeError:
        return False
    return True


def gauss_newton_product(loss: PerSampleLoss, samples: SampleSet, vector: Mapping[str, Tensor]) -> Vector:
    """``G v`` for G the Gauss-Newton matrix of the mean loss over a set, read once.

    Args:
        loss: the losses of an :class:`diffin.task.OutputTask` as a function of the parameters.
        samples: the set.
        vector: v, by parameter name.

    Raises:
        DerivativeError: as for :func:`along_outputs`; or a loss is not finite, or the set is empty.
    """
    total = vectors.zeros_like(loss.parameters)
    count = 0
    along = vectors.like(vector, loss.parameters)
    for losses, product in finite(loss, samples, lambda batch: along_outputs(loss, loss.parameters, batch, along)):
        add_gradients(total, product)
        count += len(losses)
    return vectors.scale(total, 1 / count)


def along_outputs(
    loss: PerSampleLoss,
    point: Mapping[str, Tensor],
    batch: Batch,
    vector: Mapping[str, Tensor],
    *,
    beside: Mapping[str, Tensor] | None = None,
) -> tuple[Tensor, list[Tensor | None]]:
    """The losses of a batch, and the product for their *sum*, in the order of ``point``; ``None`` stands for zero.

    Args:
        loss: as above.
        point: parameters to differentiate with respect to, by name.
        batch: of samples, on the device.
        vector: v, a tensor for each name in ``point``.
        beside: tensors of the model that are not as ``loss`` has them.

    Raises:
        DerivativeError: the task's loss is not known as a function of outputs, or an operation has no forward mode.
    """
    task = loss.task
    # A subclass may have written another loss over that of its outputs.
    if not isinstance(task, OutputTask) or type(task).losses is not OutputTask.losses:
        raise DerivativeError(
            f"the loss of {type(task).__name__} is not known as a function of the model's outputs, so there is no "
            "Gauss-Newton matrix; derive it from diffin.task.OutputTask, or pass hessian='exact'"
        )
    at = leaves(point)
    with torch.enable_grad(), composite_attention(), _forward.dual_level():
        duals = {name: _forward.make_dual(t, vector[name].to(t)) for name, t in at.items()}
        try:
            outputs, tangent = _forward.unpack_dual(loss.outputs({**duals, **(beside or {})}, batch))
        except (NotImplementedError, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise DerivativeError(
                f"an operation of the model has no forward mode ({error}), which Gauss-Newton products need; pass "
                "hessian='exact'"
            ) from error
    losses, bent = _bent(task, outputs.detach(), tangent, batch)
    if bent is None or not outputs.requires_grad:
        return losses, [None] * len(at)
    return losses, list(torch.autograd.grad(outputs, list(at.values()), bent, allow_unused=True))


def _bent(task: OutputTask, outputs: Tensor, tangent: Tensor | None, batch: Batch) -> tuple[Tensor, Tensor | None]:
    """The losses, and L t with L the Hessian of their sum in the outputs; ``None`` for zero."""
    z = outputs.requires_grad_()
    with torch.enable_grad():
        losses = task.losses_of(z, batch)
        (slope,) = torch.autograd.grad(losses.sum(), z, create_graph=True)
        if tangent is None or not slope.requires_grad:
            return losses.detach(), None
        (product,) = torch.autograd.grad(slope, z, tangent.detach())
    return losses.detach(), product
