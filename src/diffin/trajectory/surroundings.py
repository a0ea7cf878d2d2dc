"""What a training is done with: the modules inside wrappers, the machine, and whether parameters are still the same."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def unwrapped_optimizer(optimizer: Optimizer) -> Optimizer:
    """The optimizer inside a wrapper that looks like one (Accelerate)."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = inner
    return optimizer


def environment(parameters: Mapping[str, nn.Parameter], grad_scaler: torch.amp.GradScaler | None) -> dict[str, Any]:
    devices = sorted({parameter.device.type for parameter in parameters.values()})
    parallel = torch.distributed.is_available() and torch.distributed.is_initialized()
    return {
        "device": "+".join(devices) or "cpu",
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "grad_scaler": grad_scaler is not None and grad_scaler.is_enabled(),
        "world_size": torch.distributed.get_world_size() if parallel else 1,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def parameter_sums(parameters: Mapping[str, nn.Parameter]) -> Tensor:
    """One number a parameter, to see whether it is still the same. Float64[Tensor, "parameters"]."""
    with torch.no_grad():
        sums = [p.abs().sum() if p.is_complex() else p.sum(dtype=torch.float64) for p in parameters.values()]
        return torch.stack([value.cpu().double() for value in sums]) if sums else torch.empty(0, dtype=torch.float64)
