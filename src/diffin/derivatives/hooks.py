"""Hooks on the layers whose output is linear in their own parameters, and the place of each output in the graph.

The gradient of the loss with respect to such an output, and what is noted of the call, are all that a derivative with
respect to the layer's parameters needs: no gradient of a parameter is formed by the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from diffin.batches import batch_size
from diffin.derivatives.composite import unfused_encoder
from diffin.task import PerSampleLoss
from diffin.vectors import Vector

Noted = TypeVar("Noted")
Note = Callable[[tuple[Any, ...], dict[str, Any]], Noted]
"""What to keep of a call of a layer, from its arguments. It is taken at once: an in-place operation may overwrite the input
once the layer is done with it. Parameters and buffers of the layer are those of the loss meanwhile."""

LINEAR_IN_PARAMETERS: tuple[type[nn.Module], ...] = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Embedding,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.RMSNorm,
)
"""Layers whose output is linear in their own parameters (normalisation: in evaluation mode). :func:`is_transposed_linear`
knows one more, of a library that need not be there."""

# A subclass that overrides forward may compute anything, so the forward decides, not the class.
_FORWARDS = {kind.forward for kind in LINEAR_IN_PARAMETERS}
_TRANSPOSED_LINEAR = ("transformers.pytorch_utils", "Conv1D.forward")


@dataclass(frozen=True)
class Call(Generic[Noted]):
    """One call of a layer during a forward pass.

    Attributes:
        edge: the place of its output in the graph.
        noted: what was kept of it.
    """

    edge: GradientEdge
    noted: Noted


def is_transposed_linear(module: nn.Module) -> bool:
    """Whether the module is the ``Conv1D`` of transformers: GPT-2's linear layer, whose weight is (in, out)."""
    forward = type(module).forward
    return (getattr(forward, "__module__", ""), getattr(forward, "__qualname__", "")) == _TRANSPOSED_LINEAR


def linear_layers(model: nn.Module, names: set[str]) -> Iterator[tuple[nn.Module, dict[str, str]]]:
    """Modules of known kind, each with {its own parameter's name: the name in ``names``}; shared weights stay shared."""
    canonical = {id(p): name for name, p in model.named_parameters()}
    for module in model.modules():
        if type(module).forward in _FORWARDS or is_transposed_linear(module):
            own = {local: canonical[id(p)] for local, p in module.named_parameters(recurse=False)}
            # A layer that was reparametrised may hold other parameters, from which its weight is made.
            own = {local: name for local, name in own.items() if name in names and local in ("weight", "bias")}
            if own:
                yield module, own


@contextmanager
def hooked(
    notes: Sequence[tuple[nn.Module, Note[Noted]]], size: int, handed: Set[nn.Module] = frozenset()
) -> Iterator[list[Call[Noted]]]:
    """While inside, every call of a module is noted in the list.

    Args:
        notes: what to keep of the calls of which modules.
        size: B.
        handed: tables that are looked up once for all samples; what they give is repeated for each.
    """
    calls: list[Call[Noted]] = []
    inside = False

    def hook(note: Note[Noted]) -> Callable[..., Tensor | None]:
        def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
            nonlocal inside
            if inside:
                return None
            inside = True
            try:
                with torch.no_grad():
                    noted = note(args, kwargs)
            finally:
                inside = False
            if module in handed:
                output = _repeated(output, size)
            if not output.requires_grad:
                # Parameters carry no gradient, so the graph has to be started at the first outputs.
                output = output + torch.zeros((), dtype=output.dtype, device=output.device, requires_grad=True)
            calls.append(Call(get_gradient_edge(output), noted))
            return output

        return after

    handles = [module.register_forward_hook(hook(note), with_kwargs=True) for module, note in notes]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _repeated(rows: Tensor, size: int) -> Tensor:
    """Rows of a table that all samples share, (1, T, K) or (T, K), as (B, T, K); others as they are."""
    rows = rows.unsqueeze(0) if rows.ndim == 2 else rows
    return rows.expand(size, *rows.shape[1:]) if len(rows) == 1 else rows


def backward(
    loss: PerSampleLoss,
    point: Vector,
    batch: Any,
    notes: Sequence[tuple[nn.Module, Note[Noted]]],
    handed: Set[nn.Module] = frozenset(),
) -> tuple[Tensor, list[tuple[Noted, Tensor | None]]]:
    """One forward and one backward pass.

    Args:
        loss: the losses as a function of the studied parameters.
        point: where.
        batch: B samples.
        notes: what to keep of the calls of which modules.
        handed: see :func:`hooked`.

    Returns:
        The losses, Float[Tensor, "B"], and for every call what was noted of it and the gradient of the summed loss with
        respect to its output; ``None`` if the loss does not depend on it.
    """
    with torch.enable_grad(), hooked(notes, batch_size(batch), handed) as calls, unfused_encoder():
        losses = loss(point, batch)
        if not (calls and losses.requires_grad):
            return losses.detach(), []
        deltas = torch.autograd.grad(losses.sum(), [call.edge for call in calls], allow_unused=True)
    return losses.detach(), [
        (call.noted, None if delta is None else delta.detach()) for call, delta in zip(calls, deltas, strict=True)
    ]
