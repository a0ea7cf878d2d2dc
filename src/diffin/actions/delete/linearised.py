"""The loss of the network that is linear in its parameters: the tangent of the model at a state, under the loss as it is.

With f the outputs of the model at theta and J their derivative, the loss of a sample at a displacement delta is
l(f + J delta). It is convex in delta where l is convex in the outputs, as cross-entropy and squared error are, and it follows
a loss far beyond where a second-order expansion in the parameters holds: a probability that goes to zero, for one.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from diffin import vectors
from diffin.batches import Batch
from diffin.derivatives.gradient import MeanLoss, SampleSet, add_gradients
from diffin.derivatives.outputs import cut
from diffin.errors import DerivativeError
from diffin.task import PerSampleLoss


def linearised_losses(loss: PerSampleLoss, delta: Mapping[str, Tensor], batch: Batch) -> Tensor:
    """``l(f + J delta)`` of every sample of a batch on the device. Float[Tensor, "B"], without a graph.

    Use it inside :func:`diffin.task.frozen`.

    Raises:
        DerivativeError: the model cannot be linearised, see :func:`diffin.derivatives.outputs.cut`.
    """
    return cut(loss, batch, delta, moved=True).losses.detach()


def linearised_gradient(
    loss: PerSampleLoss, samples: SampleSet, weights: Tensor, delta: Mapping[str, Tensor]
) -> MeanLoss:
    """The weighted mean loss of the linearised network over a set, and its gradient with respect to ``delta``.

    Use it inside :func:`diffin.task.frozen`.

    Args:
        loss: losses at theta.
        samples: the set.
        weights: of its samples, in the order in which they are read: Float64[Tensor, "n"], adding up to one.
        delta: displacement, of every studied parameter.

    Raises:
        DerivativeError: see :func:`linearised_losses`; or the set is empty, or a loss of it is not finite.
    """
    total = vectors.zeros_like(loss.parameters)
    value, count = 0.0, 0
    for batch in samples.read():
        parts = cut(loss, loss.to_device(batch), delta, moved=True)
        weighted = parts.losses * weights[count : count + len(parts.losses)].to(parts.losses)
        add_gradients(total, parts.pull(list(torch.autograd.grad(weighted.sum(), parts.seen))))
        value += float(weighted.detach().sum())
        count += len(parts.losses)
    if not count or not value < float("inf"):
        raise DerivativeError(f"{samples.name} is empty, or a loss of it is not finite; leave such samples out")
    return MeanLoss(value, total, count)
