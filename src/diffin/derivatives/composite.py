"""Operations by formulas that can be differentiated as often, and seen into as deep, as a derivative needs.

Fused kernels are fast and shallow: attention's have no second derivative and no forward mode, the transformer layer's
inference kernel hides its submodules from hooks, and the forward-mode rules of layer and instance normalisation, nested,
return wrong numbers without a word (the inner rule treats the saved mean and deviation as constants). So does the second
derivative of weight normalisation, which treats the saved norms as constants.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode


@contextmanager
def unfused_encoder() -> Iterator[None]:
    """Transformer layers call their submodules instead of one inference kernel."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


@contextmanager
def composite_attention() -> Iterator[None]:
    """Attention from elementary operations, at every level; weight normalisation, too."""
    with sdpa_kernel(SDPBackend.MATH), unfused_encoder(), _Replaced(_WEIGHT_NORMALISATION):
        yield


@contextmanager
def nested_forward_mode() -> Iterator[None]:
    """Everything that nested forward-mode differentiation needs to be right."""
    # Some rules take a differentiable formula only where gradients are enabled; no graph is built, as nothing requires one.
    with torch.enable_grad(), composite_attention(), _Replaced(_SAMPLE_NORMALISATION):
        yield


@contextmanager
def differentiable_statistics() -> Iterator[None]:
    """Attention from elementary operations, and running statistics of batch normalisation that depend on the batch."""
    with composite_attention(), _Replaced({F.batch_norm: batch_norm}):
        yield


def jvp(function: Callable[..., Any], primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    """The value of ``function`` and its derivative along ``tangents``, by forward mode."""
    result = torch.func.jvp(function, primals, tangents)
    return result[0], result[1]


def layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    """``F.layer_norm`` and ``torch.layer_norm`` by their definition."""
    del cudnn_enable  # says which kernel to take, and none is taken
    dimensions = tuple(range(-len(normalized_shape), 0))
    centred = x - x.mean(dimensions, keepdim=True)
    normal = centred * torch.rsqrt(centred.square().mean(dimensions, keepdim=True) + eps)
    normal = normal if weight is None else normal * weight
    return normal if bias is None else normal + bias


def instance_norm(
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """``F.instance_norm`` by its definition; running statistics are used where the layer says so, never updated."""
    if not use_input_stats:
        return F.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
    normal = layer_norm(x, x.shape[2:], eps=eps)
    shape = (1, -1, *(1 for _ in x.shape[2:]))
    normal = normal if weight is None else normal * weight.view(shape)
    return normal if bias is None else normal + bias.view(shape)


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """``F.batch_norm`` by its definition, the update of the running statistics a part of the graph."""
    shape = (1, -1, *(1 for _ in x.shape[2:]))
    if training:
        dimensions = (0, *range(2, x.ndim))
        mean, variance = x.mean(dimensions), x.var(dimensions, correction=0)
        count = x.numel() // x.shape[1]
        if running_mean is not None and running_var is not None:
            running_mean.mul_(1 - momentum).add_(mean, alpha=momentum)
            running_var.mul_(1 - momentum).add_(variance, alpha=momentum * count / max(count - 1, 1))
    else:
        mean, variance = _present(running_mean), _present(running_var)
    normal = (x - mean.view(shape)) * torch.rsqrt(variance + eps).view(shape)
    normal = normal if weight is None else normal * weight.view(shape)
    return normal if bias is None else normal + bias.view(shape)


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """``torch._weight_norm`` by its definition: g times v over its norm, one norm for each entry of a dimension."""
    return v * (g / torch.norm_except_dim(v, 2, dim))


def _present(statistic: Tensor | None) -> Tensor:
    assert statistic is not None  # without one, the layer asks for statistics of the batch
    return statistic


_SAMPLE_NORMALISATION: Mapping[Callable[..., Any], Callable[..., Tensor]] = {
    F.layer_norm: layer_norm,
    torch.layer_norm: layer_norm,
    F.instance_norm: instance_norm,
}


_WEIGHT_NORMALISATION: Mapping[Callable[..., Any], Callable[..., Tensor]] = {torch._weight_norm: weight_norm}


class _Replaced(TorchFunctionMode):
    """Calls other functions while it is entered; ``torch.native_...`` forms are not seen."""

    def __init__(self, functions: Mapping[Callable[..., Any], Callable[..., Any]]) -> None:
        super().__init__()
        self._functions = functions

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        function: Callable[..., Any] = self._functions.get(func, func)
        return function(*args, **(kwargs or {}))
