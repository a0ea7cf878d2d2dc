"""Sample indices as loops hand them over: tensors, arrays, lists; checked, copied, and one-dimensional in the end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffin.errors import RecordingError
from diffin.trajectory.steps import IntArray

Indices = Tensor | np.ndarray[Any, Any] | Sequence[int] | Iterable[int]
"""Positions in the training set: a tensor, an array, or a list, of whole numbers."""


_WHOLE = frozenset({torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8})


def copied(indices: Indices) -> IntArray | Tensor:
    """A copy of the samples of a batch, because loops reuse their tensors; :func:`on_host` checks their range.

    This runs in every step of a training: tensors stay tensors, and nothing waits for an accelerator.

    Raises:
        RecordingError: they are not whole numbers.
    """
    if isinstance(indices, Tensor):
        if indices.dtype not in _WHOLE:
            raise _not_indices(indices.dtype)
        if not indices.numel():
            raise _not_indices("an empty tensor")
        return indices.clone()
    is_lazy = isinstance(indices, Iterable) and not isinstance(indices, (np.ndarray, list, tuple))
    array = np.array(list(indices) if is_lazy else indices)
    if not array.size:
        raise _not_indices("an empty sequence")
    if array.dtype.kind not in "iu":
        raise _not_indices(array.dtype)
    return array


def on_host(indices: IntArray | Tensor, step: int, dataset_size: int) -> IntArray:
    """Indices as they are written, Int64[ndarray, "batch"].

    Raises:
        RecordingError: one is not a position in the training set.
    """
    array = (indices.cpu().numpy() if isinstance(indices, Tensor) else indices).reshape(-1)
    bad = array[(array < 0) | (array >= dataset_size)]
    if bad.size:
        raise RecordingError(
            f"step {step} has the sample index {bad[0]}, outside 0 to {dataset_size - 1}: pass positions in the "
            "training set, and its length as dataset_size"
        )
    return array.astype(np.int64)


def _not_indices(what: object) -> RecordingError:
    return RecordingError(
        f"indices must be the positions of the batch's samples in the training set, as whole numbers, not {what}: "
        "have the dataset return the index of each sample, e.g. through diffin.Indexed(dataset)"
    )
