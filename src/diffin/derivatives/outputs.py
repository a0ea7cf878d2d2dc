"""A loss cut in two where the model ends: outputs as a function of the parameters, and losses as one of the outputs.

What the model puts out is taken from its call, so that any task will do whose losses see the parameters through that alone.
Parameters are moved along a direction in forward mode meanwhile, which says how the outputs move to first order.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from diffin.batches import Batch
from diffin.derivatives.composite import composite_attention
from diffin.derivatives.gradient import leaves
from diffin.errors import DerivativeError
from diffin.task import PerSampleLoss
from diffin.vectors import Vector

_forward: Any = forward_ad  # it has no types
_ADVICE = "pass hessian='exact', or estimator=diffin.Unrolled(propagation='segments'), which need losses only"


@dataclass
class Cut:
    """A batch.

    Attributes:
        point: the parameters that were differentiated with respect to.
        outputs: of every call of the model (:attr:`diffin.task.Task.boundary`), with the graph that leads to ``point``.
        tangents: how each moves along the direction.
        seen: what the losses saw in the place of each: leaves.
        losses: Float[Tensor, "B"], with the graph that leads to ``seen``.
    """

    point: Vector
    outputs: list[Tensor] = field(default_factory=list)
    tangents: list[Tensor] = field(default_factory=list)
    seen: list[Tensor] = field(default_factory=list)
    losses: Tensor = field(default_factory=lambda: torch.zeros(0))

    def pull(self, cotangents: list[Tensor]) -> list[Tensor | None]:
        """``J' c``, in the order of ``point``; ``None`` stands for zero."""
        pairs = [(o, c) for o, c in zip(self.outputs, cotangents, strict=True) if o.requires_grad]
        if not pairs:
            return [None] * len(self.point)
        inputs = list(self.point.values())
        return list(torch.autograd.grad([o for o, _ in pairs], inputs, [c for _, c in pairs], allow_unused=True))


def cut(
    loss: PerSampleLoss,
    batch: Batch,
    direction: Mapping[str, Tensor],
    *,
    at: Mapping[str, Tensor] | None = None,
    beside: Mapping[str, Tensor] | None = None,
    moved: bool = False,
) -> Cut:
    """Cut the losses of a batch on the device.

    Args:
        loss: the losses as a function of the parameters.
        batch: of samples.
        direction: of the parameters, a tensor for each.
        at: where; ``loss.parameters`` by default.
        beside: tensors of the model that are not as ``loss`` has them.
        moved: whether the losses see the outputs where the direction leads to, to first order, or where they are.

    Raises:
        DerivativeError: the losses see the parameters otherwise than by calls of the model that return a tensor, or an
            operation of the model has no forward mode.
    """
    found = Cut(leaves(loss.parameters if at is None else at))
    duals = {}
    with composite_attention(), _forward.dual_level(), torch.enable_grad(), _watched(loss, found, moved):
        for name, tensor in found.point.items():
            duals[name] = _forward.make_dual(tensor, direction[name].to(tensor))
        try:
            found.losses = loss({**duals, **(beside or {})}, batch)
        except (NotImplementedError, RuntimeError) as error:
            if isinstance(error, (torch.OutOfMemoryError, DerivativeError)):
                raise
            raise DerivativeError(f"an operation of the model has no forward mode ({error}); {_ADVICE}") from error
    if not found.seen or _reaches(found.losses, found.point):
        raise DerivativeError(
            f"the losses of {type(loss.task).__name__} do not go through calls of its model alone (self.model(...)); "
            f"{_ADVICE}"
        )
    return found


@contextmanager
def _watched(loss: PerSampleLoss, found: Cut, moved: bool) -> Iterator[None]:
    def replace(output: Tensor) -> Tensor:
        plain, tangent = _forward.unpack_dual(output)
        tangent = torch.zeros_like(plain) if tangent is None else tangent.detach()
        seen: Tensor = (plain + tangent if moved else plain).detach().requires_grad_()
        for collected, one in zip((found.outputs, found.tangents, found.seen), (plain, tangent, seen), strict=True):
            collected.append(one)
        return seen

    def hook(module: object, inputs: object, output: Any) -> Any:
        del module, inputs
        if isinstance(output, Tensor):
            return replace(output)
        if isinstance(getattr(output, "logits", None), Tensor):
            changed = copy.copy(output)
            changed.logits = replace(output.logits)
            return changed
        raise DerivativeError(
            f"the model returned {type(output).__name__}, and its loss can be cut at a tensor or something with .logits; "
            f"{_ADVICE}"
        )

    handle = loss.task.boundary.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _reaches(losses: Tensor, point: Vector) -> bool:
    found = torch.autograd.grad(losses.sum(), list(point.values()), allow_unused=True, retain_graph=True)
    return any(gradient is not None for gradient in found)
