"""Batches as they come: a tensor, or any nesting of tuples, lists, mappings and encodings that hold tensors."""

from __future__ import annotations

import copy
import hashlib
from collections import UserDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from diffin.errors import DatasetError

Batch = Any


def map_tensors(function: Callable[[Tensor], Any], batch: Batch) -> Any:
    """The same nesting with ``function`` applied to every tensor; everything else is passed through."""
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, Mapping):
        return _same_kind(batch, {key: map_tensors(function, value) for key, value in batch.items()})
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(map_tensors(function, value) for value in batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(map_tensors(function, value) for value in batch)
    return batch


def tensors(batch: Batch) -> Iterator[Tensor]:
    """Every tensor of the batch, in order."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from tensors(value)
    elif isinstance(batch, (tuple, list)):
        for value in batch:
            yield from tensors(value)


def _leaves(batch: Batch) -> Iterator[Any]:
    """Every tensor, text and number of the batch, in order."""
    if isinstance(batch, Mapping):
        for key, value in batch.items():
            yield str(key)
            yield from _leaves(value)
    elif isinstance(batch, (tuple, list)):
        for value in batch:
            yield from _leaves(value)
    elif isinstance(batch, (Tensor, str, bytes, int, float)):
        yield batch


def to_device(batch: Batch, device: torch.device) -> Batch:
    return map_tensors(lambda t: t.to(device, non_blocking=device.type == "cuda"), batch)


def batch_size(batch: Batch) -> int:
    """The number of samples: the length of the first tensor that has a dimension.

    Raises:
        DatasetError: the batch holds no tensor with a batch dimension.
    """
    for tensor in tensors(batch):
        if tensor.ndim:
            return tensor.shape[0]
    raise DatasetError(
        f"a batch of type {type(batch).__name__} holds no tensor with a batch dimension, so its number of samples is "
        "unknown; pass a collate function that stacks samples along the first dimension"
    )


def select(batch: Batch, rows: slice | Tensor) -> Batch:
    """The given rows of every tensor that has the batch dimension, and of every list or tuple of as many plain values."""
    size = batch_size(batch)

    def pick(part: Any) -> Any:
        if isinstance(part, Tensor):
            return part[rows] if part.ndim and part.shape[0] == size else part
        if isinstance(part, Mapping):
            return _same_kind(part, {key: pick(value) for key, value in part.items()})
        if isinstance(part, tuple) and hasattr(part, "_fields"):
            return type(part)(*(pick(value) for value in part))
        if isinstance(part, (list, tuple)) and len(part) == size and not any(map(_is_nesting, part)):
            return part[rows] if isinstance(rows, slice) else type(part)(part[int(i)] for i in rows)
        if isinstance(part, (tuple, list)):
            return type(part)(pick(value) for value in part)
        return part

    return pick(batch)


def _is_nesting(value: Any) -> bool:
    return isinstance(value, (Tensor, Mapping, list, tuple))


def _same_kind(mapping: Mapping[Any, Any], content: dict[Any, Any]) -> Any:
    """The content as an encoding if the mapping is one (its attributes are used by models), else as a dict."""
    if not isinstance(mapping, UserDict):
        return content
    same = copy.copy(mapping)
    same.data = content
    return same


def nbytes(batch: Batch) -> int:
    """Memory held by the tensors of the batch, in bytes."""
    return sum(t.numel() * t.element_size() for t in tensors(batch))


def digest(batch: Batch, *, most: int | None = None) -> str:
    """Identifies a batch, or a model's state: tensors by type, shape and bytes, texts and numbers as they are.

    Args:
        batch: any nesting of tensors.
        most: read at most about this many elements of each tensor, evenly spread; ``None`` for all.
    """
    total = hashlib.sha256()
    for tensor in _leaves(batch):
        if not isinstance(tensor, Tensor):
            total.update(repr(tensor).encode())
            continue
        total.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        if tensor.numel() and not tensor.is_sparse:
            flat = tensor.detach().reshape(-1)
            if most is not None:
                flat = flat[:: max(1, flat.numel() // most)]
            total.update(flat.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()[:16]
