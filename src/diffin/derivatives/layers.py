"""What a layer's call has to keep, and the shares of its parameters that come of it: one kind of layer after another."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from diffin.derivatives.hooks import is_transposed_linear
from diffin.derivatives.shares import Formed, Looked, Outer, Share

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_BY_CHANNEL = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.GroupNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
)


def noted(module: nn.Module, names: set[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """What :func:`share` needs of a call: its input, of a normalisation that input normalised."""
    x: Tensor = args[0] if args else kwargs["x" if is_transposed_linear(module) else "input"]
    if isinstance(module, (*_BY_CHANNEL, nn.LayerNorm, nn.RMSNorm)) and "weight" in names:
        units = {name: torch.full_like(p, name == "weight") for name, p in module.named_parameters(recurse=False)}
        normal: Tensor = functional_call(module, units, (x,))
        return normal
    return x.detach()


def share(module: nn.Module, local: str, parameter: Tensor, x: Tensor, delta: Tensor, size: int) -> Share | None:
    """What a call adds to the gradient of ``module.local``.

    Args:
        module: of a kind that :func:`diffin.derivatives.hooks.linear_layers` finds.
        local: the parameter's name within it.
        parameter: the parameter, for its shape.
        x: what :func:`noted` kept of the call.
        delta: gradient of the summed loss with respect to the output.
        size: B.

    Returns:
        ``None`` if the output cannot be divided among the samples.
    """
    if isinstance(module, nn.Linear):
        return _of_linear(local, parameter.shape, x, delta, size)
    if is_transposed_linear(module):
        return _of_linear(local, parameter.shape, x, delta, size, transposed=True)
    if isinstance(module, nn.Embedding):
        if delta.numel() % (size * delta.shape[-1]):
            return None
        x = x.expand(delta.shape[:-1])  # what all samples share has been repeated for each
        if module.padding_idx is not None:
            delta = delta.masked_fill((x == module.padding_idx).unsqueeze(-1), 0.0)
        return Looked(x.reshape(size, -1), delta.reshape(size, -1, delta.shape[-1]), parameter.shape)
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        if delta.numel() % (size * parameter.numel()):
            return None
        return Formed((delta * x if local == "weight" else delta).reshape(size, -1, *parameter.shape).sum(dim=1))
    # What remains has channels in dimension 1.
    spatial = delta.ndim - 2
    if (
        delta.ndim < 2
        or len(delta) % size
        or (isinstance(module, nn.modules.conv._ConvNd) and spatial != _order(module))
    ):
        return None
    if isinstance(module, _BY_CHANNEL) or local == "bias":
        each = delta * x if local == "weight" else delta
        each = each.flatten(2).sum(dim=2) if spatial else each
        return Formed(each.reshape(size, -1, each.shape[1]).sum(dim=1))
    assert isinstance(module, (*_CONVOLUTIONS, *_TRANSPOSED))
    groups = module.groups
    if isinstance(module, _CONVOLUTIONS):
        left, right = delta, windows(module, x)
    else:
        # A transposed convolution spreads its input where a convolution gathers: input and output change places.
        within = (slice(None), slice(None), *(slice(length) for length in x.shape[2:]))
        left, right = x, windows(module, delta, within)
    return Outer(_positions(left.flatten(2), groups, size), _positions(right, groups, size), parameter.shape)


def _of_linear(
    local: str, shape: torch.Size, x: Tensor, delta: Tensor, size: int, transposed: bool = False
) -> Share | None:
    if delta.numel() % (size * delta.shape[-1]):
        return None
    delta = delta.reshape(size, -1, delta.shape[-1])
    if local == "bias":
        return Formed(delta.sum(dim=1))
    left, right = delta.unsqueeze(1), x.reshape(size, 1, -1, x.shape[-1])
    return Outer(right, left, shape) if transposed else Outer(left, right, shape)


def _order(module: nn.Module) -> int:
    return len(module.kernel_size)  # type: ignore[arg-type]


def _positions(channels: Tensor, groups: int, size: int) -> Tensor:
    """(n, G * K, L), with n a multiple of the B samples, as (B, G, T, K)."""
    length = channels.shape[2]
    if len(channels) == size:
        return channels.reshape(size, groups, -1, length).transpose(2, 3)
    each = channels.reshape(size, -1, groups, channels.shape[1] // groups, length)
    return each.permute(0, 2, 1, 4, 3).flatten(2, 3)


def windows(module: Any, x: Tensor, within: tuple[slice, ...] | None = None) -> Tensor:
    """What the kernel of a convolution sees at each of L positions.

    Args:
        module: the convolution.
        x: Float[Tensor, "n C *S"].
        within: keep these positions only.

    Returns:
        Float[Tensor, "n C*k L"], k the number of elements of the kernel.
    """
    kernel, stride, dilation = module.kernel_size, module.stride, module.dilation
    padding = _padding(module)
    plain = module.padding_mode == "zeros" and all(a == b for a, b in padding)
    if len(kernel) == 2 and within is None and plain:
        return F.unfold(x, kernel, dilation, tuple(a for a, _ in padding), stride)
    if any(chain(*padding)):
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        x = F.pad(x, list(chain(*reversed(padding))), mode=mode)
    for dimension, (length, step, gap) in enumerate(zip(kernel, stride, dilation, strict=True), start=2):
        x = x.unfold(dimension, gap * (length - 1) + 1, step)[..., ::gap]
    x = x if within is None else x[within]
    order = len(kernel)
    places, inside = range(2, 2 + order), range(2 + order, 2 + 2 * order)
    return x.permute(0, 1, *inside, *places).flatten(2 + order).flatten(1, -2)


def _padding(module: Any) -> list[tuple[int, int]]:
    """Before and after, dimension by dimension."""
    if module.padding == "valid":
        return [(0, 0)] * len(module.kernel_size)
    if module.padding == "same":
        whole = [gap * (length - 1) for length, gap in zip(module.kernel_size, module.dilation, strict=True)]
        return [(each // 2, each - each // 2) for each in whole]
    return [(each, each) for each in module.padding]
