"""The one interface of the directional back ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from diffin.batches import Batch
from diffin.errors import DerivativeError
from diffin.probes import Probe
from diffin.task import PerSampleLoss


@dataclass(frozen=True)
class Measured:
    """What a probe says of a batch of B samples.

    Attributes:
        losses: Float64[Tensor, "B"], the losses at the checkpoint (for ``difference``: their mean over the displaced
            parameters, which agrees to second order in the step).
        derivatives: Float64[Tensor, "B"], ``D_u e_z + D2_{v,d} e_z``, without the probe's weight. The effect e_z of a sample
            is its loss, unless losses are coupled (:meth:`diffin.task.Outcome.effects`).
    """

    losses: Tensor
    derivatives: Tensor


Measure = Callable[[Batch], Measured]
"""Measures one probe on a batch that is already on the device. Call it inside :func:`diffin.task.frozen`."""


class Directional(Protocol):
    """A way to take directional derivatives of per-sample losses."""

    @property
    def name(self) -> str:
        """As users write it: ``"difference"``, ``"forward"`` or ``"ghost"``."""
        ...

    def prepare(self, loss: PerSampleLoss, probe: Probe) -> Measure:
        """Do the work that all samples share, once."""
        ...


def as_float64(tensor: Tensor) -> Tensor:
    """Detached, in float64; on the host where the device has no such type (MPS)."""
    tensor = tensor.detach()
    return tensor.cpu().double() if tensor.device.type == "mps" else tensor.double()


def refuse_half_precision(loss: PerSampleLoss) -> None:
    """Differences of numbers with 8 or 11 significant bits are noise."""
    for name, tensor in loss.parameters.items():
        if tensor.dtype in (torch.bfloat16, torch.float16):
            raise DerivativeError(
                f"{name!r} is {tensor.dtype}, too coarse to take differences in: pass model.float(), derivatives='forward' "
                "and hessian='exact', or parameters= without the half-precision ones"
            )
    if loss.task.autocast in (torch.bfloat16, torch.float16):
        raise DerivativeError(
            f"the task computes in {loss.task.autocast} (autocast), too coarse to take differences in: pass "
            "derivatives='forward' and hessian='exact', or autocast=None to the task"
        )
