"""The loss of the network that is linear in its parameters: the tangent of the model at a state, under the loss as it is.

With f the outputs of the model at theta and J their derivative, the loss of a sample at a displacement delta is
l(f + J delta). It is convex in delta where l is convex in the outputs, as cross-entropy and squared error are, and it follows
a loss far beyond where a second-order expansion in the parameters holds: a probability that goes to zero, for one.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.autograd.forward_ad as forward
from torch import Tensor

from diffin import vectors
from diffin.batches import Batch
from diffin.derivatives.composite import composite_attention
from diffin.derivatives.gradient import MeanLoss, SampleSet, add_gradients, leaves
from diffin.errors import DerivativeError, TaskError
from diffin.task import PerSampleLoss
from diffin.vectors import Vector


class _Outputs:
    """What the model returned, with the derivative along the displacement added before the loss saw it."""

    def __init__(self) -> None:
        self.plain: list[Tensor] = []
        self.moved: list[Tensor] = []

    def move(self, module: object, inputs: object, output: Any) -> Any:
        del module, inputs
        if isinstance(output, Tensor):
            return self._moved(output)
        if isinstance(getattr(output, "logits", None), Tensor):
            changed = copy.copy(output)
            changed.logits = self._moved(output.logits)
            return changed
        raise TaskError(
            f"the model returned {type(output).__name__}, and linearising it needs a tensor or something with .logits; pass "
            "estimator=diffin.Unrolled(propagation='segments'), which needs losses only"
        )

    def _moved(self, output: Tensor) -> Tensor:
        plain, tangent = forward.unpack_dual(output)  # type: ignore[no-untyped-call]
        moved: Tensor = (plain if tangent is None else plain + tangent).detach().requires_grad_()
        self.plain.append(plain)
        self.moved.append(moved)
        return moved


@contextmanager
def _linearised(loss: PerSampleLoss) -> Iterator[_Outputs]:
    outputs = _Outputs()
    handle = loss.task.model.register_forward_hook(outputs.move)
    try:
        with composite_attention(), forward.dual_level(), torch.enable_grad():
            yield outputs
    finally:
        handle.remove()


def linearised_losses(loss: PerSampleLoss, delta: Mapping[str, Tensor], batch: Batch) -> Tensor:
    """``l(f + J delta)`` of every sample of a batch on the device. Float[Tensor, "B"], without a graph.

    Use it inside :func:`diffin.task.frozen`.

    Raises:
        TaskError: the loss does not go through a call of the task's model, or that returns no tensor.
    """
    with _linearised(loss) as outputs:
        found = loss(_dual(loss.parameters, delta), batch).detach()
    _check(outputs)
    return found


def linearised_gradient(loss: PerSampleLoss, samples: SampleSet, delta: Mapping[str, Tensor]) -> MeanLoss:
    """The mean loss of the linearised network over a set, and its gradient with respect to ``delta``.

    Use it inside :func:`diffin.task.frozen`.

    Args:
        loss: losses at theta.
        samples: the set.
        delta: displacement, of every studied parameter.

    Raises:
        TaskError: see :func:`linearised_losses`.
        DerivativeError: the set is empty, or a loss of it is not finite.
    """
    total = vectors.zeros_like(loss.parameters)
    value, count = 0.0, 0
    for batch in samples.read():
        batch = loss.to_device(batch)
        point = leaves(loss.parameters)
        with _linearised(loss) as outputs:
            losses = loss(_dual(point, delta), batch)
            _check(outputs)
            pulls = torch.autograd.grad(losses.sum(), outputs.moved)
            add_gradients(total, torch.autograd.grad(outputs.plain, list(point.values()), pulls, allow_unused=True))
        value += float(losses.detach().sum())
        count += len(losses)
    if not count or not value < float("inf"):
        raise DerivativeError(f"{samples.name} is empty, or a loss of it is not finite; leave such samples out")
    return MeanLoss(value / count, vectors.scale(total, 1 / count), count)


def _dual(point: Vector, delta: Mapping[str, Tensor]) -> Vector:
    return {name: forward.make_dual(t, delta[name].to(t)) for name, t in point.items()}  # type: ignore[no-untyped-call]


def _check(outputs: _Outputs) -> None:
    if not outputs.moved:
        raise TaskError(
            "the task's losses do not call its model as a whole (self.model(...)), so that the network cannot be linearised; "
            "pass estimator=diffin.Unrolled(propagation='segments'), which needs losses only"
        )
