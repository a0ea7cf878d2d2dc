"""Whether the gradient of a loss jumps: differences of gradients mean nothing across a jump."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from diffin.batches import Batch
from diffin.task import PerSampleLoss

_JUMPING = (
    "Relu", "LeakyRelu", "PreluKernel", "RreluWithNoise", "Threshold", "Hardtanh", "Hardsigmoid", "Hardswish", "Hardshrink",
    "Softshrink", "Clamp", "Abs", "L1Loss", "Max", "AdaptiveMax", "FractionalMax", "Min", "Amax", "Amin", "Fmax", "Fmin",
    "Median", "Kthvalue", "Topk", "Sort", "MultiMargin", "MultilabelMargin",
)  # fmt: skip
"""What the names of autograd's nodes begin with for operations that are bent: their slope jumps at a point."""


def kinks(loss: PerSampleLoss, batch: Batch) -> set[str]:
    """Names of the operations between parameters and losses whose slope jumps (ReLU, max-pooling, ...).

    Use it inside :func:`diffin.task.frozen`. An operation that is not one of PyTorch's own is taken for smooth.
    """
    parameters = {name: t.detach().requires_grad_() for name, t in loss.parameters.items()}
    with torch.enable_grad():
        losses = loss(parameters, loss.to_device(batch))
    return {node.name() for node in graph((losses,)) if node.name().startswith(_JUMPING)}


def graph(tensors: Iterable[Tensor]) -> Iterator[Any]:
    """The nodes of autograd's graph behind the tensors."""
    pending = [tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None]
    seen = set(pending)
    while pending:
        node = pending.pop()
        yield node
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                pending.append(following)
