"""The state of the random number generators a training loop draws from, as tensors and numbers (never a pickle)."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffin.errors import TrajectoryError

# Named, so that the call is typed.
_cuda_in_use: Callable[[], bool] = torch.cuda.is_initialized


def capture() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """States of the global generators of torch (CPU and the accelerators in use), numpy and Python.

    Returns:
        Tensors and JSON values, both needed by :func:`restore`.
    """
    tensors: dict[str, Tensor] = {"torch": torch.get_rng_state()}
    # Asking an accelerator that nothing has used would initialise it.
    if torch.cuda.is_available() and _cuda_in_use():
        tensors.update({f"cuda{device}": state for device, state in enumerate(torch.cuda.get_rng_state_all())})
    if torch.backends.mps.is_available():
        tensors["mps"] = torch.mps.get_rng_state()
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    tensors["numpy"] = torch.from_numpy(np.asarray(keys).astype(np.int64))
    version, words, gauss = random.getstate()
    tensors["python"] = torch.tensor(words, dtype=torch.int64)
    numbers = {
        "numpy": [int(position), int(has_gauss), float(cached)],
        "python": [int(version), None if gauss is None else float(gauss)],
    }
    return tensors, numbers


def restore(tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
    """Put back what :func:`capture` returned; generators of accelerators that this machine lacks are left alone.

    Raises:
        TrajectoryError: it is something else.
    """
    try:
        _restore(tensors, numbers)
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise TrajectoryError(
            f"the states of random number generators are damaged ({error}); restore them from a copy"
        ) from error


def _restore(tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
    torch.set_rng_state(tensors["torch"])
    if torch.cuda.is_available():
        for device in range(torch.cuda.device_count()):
            if f"cuda{device}" in tensors:
                torch.cuda.set_rng_state(tensors[f"cuda{device}"], device)
    if "mps" in tensors and torch.backends.mps.is_available():
        torch.mps.set_rng_state(tensors["mps"])
    position, has_gauss, cached = numbers["numpy"]
    np.random.set_state(("MT19937", tensors["numpy"].numpy().astype(np.uint32), position, has_gauss, cached))
    version, gauss = numbers["python"]
    random.setstate((version, tuple(tensors["python"].tolist()), gauss))
