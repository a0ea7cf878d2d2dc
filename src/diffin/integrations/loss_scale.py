"""What the Trainer of transformers divides the losses of an accumulated batch by.

It depends on the model. The Trainer counts the labels of all micro-batches of a step and tells the model, if its forward
pass takes further keyword arguments. A model whose loss heeds the count divides the sum of its losses by it: the objective
is a mean over all items (tokens) of the step. A model that takes the arguments and does not heed them returns the mean of
its micro-batch, and the Trainer does not divide that by the number of micro-batches: the objective is the sum of these
means. Without such arguments it is the mean of the means. Which it is shows when the loss is taken with two counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffin.trajectory import randomness

_COUNT = "num_items_in_batch"
_IGNORED = -100


@dataclass(frozen=True)
class Divided:
    """What :meth:`diffin.trajectory.Recorder.step` is told; tensors are not waited for."""

    divisors: tuple[float | Tensor, ...]
    items: float | Tensor


@dataclass(frozen=True)
class _Forward:
    """A forward pass: how many predicted items each sample has (Int64[Tensor, "B"]), and the count it was told."""

    items: Tensor
    told: float | Tensor | None


class LossScaleWatch:
    """Looks at what a model is called with while it trains.

    Args:
        model: it gets a hook, until :meth:`close`.
        accumulates: whether a step has more than one micro-batch, so that it matters whether the count is heeded.
    """

    def __init__(self, model: nn.Module, *, accumulates: bool) -> None:
        self._forwards: list[_Forward | None] = []
        self._heeds: bool | None = None if accumulates else True
        self._asking = False
        self._shifts = _predicts_the_next(_inner(model))
        self._handle = model.register_forward_pre_hook(self._before, with_kwargs=True)

    def close(self) -> None:
        self._handle.remove()

    def take(self, micro_batches: int) -> Divided | None:
        """Of the step whose forward passes were seen since the last call; ``None`` if nothing can be said about it."""
        forwards, self._forwards = self._forwards, []
        seen = [forward for forward in forwards if forward is not None]
        if len(seen) < len(forwards) or len(seen) != micro_batches:
            return None
        everything = torch.cat([forward.items for forward in seen])
        low, high = everything.min(), everything.max()
        items = torch.where(low == high, low.double(), torch.nan)
        totals = [forward.items.sum() for forward in seen]
        told = [forward.told for forward in seen if forward.told is not None]
        if len(told) < len(seen):
            return Divided(tuple(total * micro_batches for total in totals), items)
        return Divided(tuple(told) if self._heeds else tuple(totals), items)

    def _before(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._asking or torch.compiler.is_compiling() or not (model.training and torch.is_grad_enabled()):
            return
        labels, told = kwargs.get("labels"), kwargs.get(_COUNT)
        if not isinstance(labels, Tensor) or not labels.ndim:
            self._forwards.append(None)
            return
        if told is not None and self._heeds is None:
            self._heeds = self._asks(model, args, kwargs)
        self._forwards.append(_Forward(self._items(labels), told))

    def _items(self, labels: Tensor) -> Tensor:
        with torch.no_grad():
            if labels.is_floating_point():  # numbers to regress to, or several classes at once: one loss a sample
                return torch.ones(len(labels), dtype=torch.int64, device=labels.device)
            shown = labels[:, 1:] if self._shifts and labels.ndim > 1 else labels
            return (shown != _IGNORED).reshape(len(labels), -1).sum(dim=1)

    def _asks(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether the loss of the model halves when the count it is told doubles. Leaves no trace."""
        kept, buffers = randomness.capture(), [(buffer, buffer.clone()) for buffer in model.buffers()]
        losses = []
        self._asking = True
        try:
            with torch.no_grad():
                for factor in (1, 2):
                    output = model(*args, **{**kwargs, _COUNT: kwargs[_COUNT] * factor})
                    losses.append(float(output["loss"] if isinstance(output, Mapping) else output[0]))
                    randomness.restore(*kept)
        finally:
            self._asking = False
            randomness.restore(*kept)
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)
        return abs(losses[0] - losses[1]) > 0.25 * abs(losses[0])


def _predicts_the_next(model: nn.Module) -> bool:
    """Whether the model shifts its labels, so that the first of a sequence is not predicted."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return False
    names = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    return getattr(model, "loss_type", None) == "ForCausalLM" or any(k.__name__ in names for k in type(model).mro())


def _inner(model: nn.Module) -> nn.Module:
    """The model inside adapters (peft)."""
    base = getattr(model, "get_base_model", None)
    inner = base() if callable(base) else model
    return inner if isinstance(inner, nn.Module) else model
