"""Products of the Gauss-Newton matrix: the curvature of the loss in its outputs, without that of the model.

For a loss that sees the model through its outputs z only, H = J' L J + sum over outputs of (d loss / d z) d2 z / d theta2,
with J = dz / dtheta and L the Hessian of the loss in z. The first term is the Gauss-Newton matrix G. It needs first
derivatives of the model only (one in forward mode, one in reverse), and for a convex loss it has no negative eigenvalue,
so that what is multiplied with I - eta G over and over does not grow.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from diffin import vectors
from diffin.batches import Batch
from diffin.derivatives.gradient import SampleSet, add_gradients, finite
from diffin.derivatives.outputs import cut
from diffin.errors import DerivativeError
from diffin.task import PerSampleLoss
from diffin.vectors import Vector


def bears_gauss_newton(loss: PerSampleLoss, batch: Batch) -> bool:
    """Whether there are such products, tried on a batch on the device. Use it inside :func:`diffin.task.frozen`."""
    try:
        batch_gauss_newton(loss, batch, loss.parameters)
    except DerivativeError:
        return False
    return True


def gauss_newton_product(loss: PerSampleLoss, samples: SampleSet, vector: Mapping[str, Tensor]) -> Vector:
    """``G v`` for G the Gauss-Newton matrix of the mean loss over a set, read once.

    Args:
        loss: the losses as a function of the parameters.
        samples: the set.
        vector: v, by parameter name.

    Raises:
        DerivativeError: as for :func:`diffin.derivatives.outputs.cut`; or a loss is not finite, or the set is empty.
    """
    total = vectors.zeros_like(loss.parameters)
    count = 0
    along = vectors.like(vector, loss.parameters)
    for losses, product in finite(loss, samples, lambda batch: batch_gauss_newton(loss, batch, along)):
        add_gradients(total, product)
        count += len(losses)
    (total,), count, _ = samples.summed([total], count)
    return vectors.scale(total, 1 / count)


def batch_gauss_newton(
    loss: PerSampleLoss,
    batch: Batch,
    vector: Mapping[str, Tensor],
    *,
    at: Mapping[str, Tensor] | None = None,
    beside: Mapping[str, Tensor] | None = None,
) -> tuple[Tensor, list[Tensor | None]]:
    """The losses of a batch, and the product for their *sum*, in the order of the parameters; ``None`` stands for zero.

    The arguments are those of :func:`diffin.derivatives.outputs.cut`, and so is what it raises.
    """
    parts = cut(loss, batch, vector, at=at, beside=beside)
    losses = parts.losses.detach()
    slopes = torch.autograd.grad(parts.losses.sum(), parts.seen, create_graph=True, allow_unused=True)
    pairs = [(s, t) for s, t in zip(slopes, parts.tangents, strict=True) if s is not None and s.requires_grad]
    if not pairs:  # linear in the outputs
        return losses, [None] * len(parts.point)
    bent = torch.autograd.grad([s for s, _ in pairs], parts.seen, [t for _, t in pairs], allow_unused=True)
    pulled = [torch.zeros_like(z) if b is None else b for z, b in zip(parts.seen, bent, strict=True)]
    return losses, parts.pull(pulled)
