"""What the losses of a task have to be, looked at on a few samples before anything is built on them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffin.batches import Batch, batch_size, select
from diffin.errors import TaskError
from diffin.task import PerSampleLoss, Task, frozen


def check_losses(task: Task, batch: Batch) -> None:
    """Refuse a task whose losses are reduced, not finite, random, detached, or coupled without saying how.

    Args:
        task: what to check, at the parameters that its model has now.
        batch: at least one sample; two or more are needed to see that samples do not depend on each other.

    Raises:
        TaskError: with a sentence that says what to pass instead.
    """
    with frozen(task.model):
        loss = PerSampleLoss(task)
        batch = loss.to_device(batch)
        size = batch_size(batch)
        with torch.no_grad():
            losses = loss(loss.parameters, batch)
            _check_shape(losses, size)
            _check_finite(losses)
            again = loss(loss.parameters, batch)
            tolerance = _rounding(loss, losses)
            if not torch.allclose(losses, again, rtol=0, atol=tolerance):
                raise TaskError(
                    "the loss of the same batch differs between two calls in evaluation mode: take randomness (functional "
                    "dropout, sampling, augmentation) out of Task.losses, or seed it by sample"
                )
            if task.group_size is not None:
                _check_effects(loss, batch, losses, tolerance)
            elif size > 1:
                _check_independence(loss, batch, losses, size, tolerance)
        with torch.enable_grad():
            leaves = {name: p.clone().requires_grad_() for name, p in loss.parameters.items()}
            if not loss(leaves, select(batch, slice(0, min(size, 2)))).requires_grad:
                raise TaskError(
                    "the losses do not depend on the model's parameters through autograd: call self.model inside "
                    "Task.losses, without torch.no_grad() or .detach()"
                )


def _check_shape(losses: Any, size: int) -> None:
    if not isinstance(losses, Tensor):
        raise TaskError(f"Task.losses returned {type(losses).__name__}; return a tensor of shape ({size},)")
    if losses.ndim == 0:
        raise TaskError(
            "Task.losses returned one number for the whole batch; return one loss per sample, shape "
            f"({size},): for PyTorch losses pass reduction='none'"
        )
    if losses.shape != (size,):
        raise TaskError(
            f"Task.losses returned shape {tuple(losses.shape)} for a batch of {size}; return shape ({size},): "
            "reduce every dimension but the first (mean over tokens or pixels, as in training)"
        )
    if not losses.is_floating_point():
        raise TaskError(f"Task.losses returned {losses.dtype}; return floating-point losses")


def _rounding(loss: PerSampleLoss, losses: Tensor) -> float:
    """By how much the same losses may differ between two batches: a loss head in float64 does not make the model exact."""
    epsilon = max(torch.finfo(t.dtype).eps for t in (losses, *loss.parameters.values()) if t.is_floating_point())
    return max(min(1e3 * epsilon, 0.1) * float(losses.abs().max()), 1e-5)


def _check_finite(losses: Tensor) -> None:
    bad = torch.nonzero(~torch.isfinite(losses)).flatten()
    if len(bad):
        raise TaskError(
            f"the loss of {len(bad)} of {len(losses)} samples is not finite (position {int(bad[0])} of the batch first): "
            "look at those samples, or clamp what overflows in Task.losses"
        )


def _check_independence(loss: PerSampleLoss, batch: Batch, losses: Tensor, size: int, tolerance: float) -> None:
    half = slice(0, (size + 1) // 2)
    alone = loss(loss.parameters, select(batch, half))
    _check_shape(alone, (size + 1) // 2)
    difference = float((alone - losses[half]).abs().max())
    if difference > tolerance:
        raise TaskError(
            f"a sample's loss changes by {difference:.2g} when other samples leave the batch: return losses that depend on "
            "their own sample only (no batch mean inside, no batch statistics, no in-batch negatives, no padding to the "
            "longest that the loss can see); a contrastive loss is that of diffin.tasks.Contrastive"
        )


def _check_effects(loss: PerSampleLoss, batch: Batch, losses: Tensor, tolerance: float) -> None:
    """Hold the effects of a coupled loss against the derivative of its weighted sum."""
    size, name, group_size = len(losses), type(loss.task).__name__, loss.task.group_size
    if not isinstance(group_size, int) or group_size < 2:
        raise TaskError(
            f"{name}.group_size={group_size!r}; pass how many samples a batch of the training had, 2 or more"
        )
    weights = torch.ones_like(losses, requires_grad=True)
    with torch.enable_grad():
        outcome = loss.outcome(loss.parameters, batch)
        total, effects = outcome.weighted(weights), outcome.effects()
        _check_shape(effects, size)
        if total.ndim or not abs(float(total.detach()) - float(losses.sum())) <= tolerance * size:
            raise TaskError(
                f"{name}: the weighted loss of a batch with weights of 1 is not the sum of its losses; return from "
                "Outcome.weighted B times the objective of the batch"
            )
        (derivative,) = torch.autograd.grad(total, weights, allow_unused=True, materialize_grads=True)
    there = (torch.arange(size, device=losses.device) < (size + 1) // 2).to(losses.dtype)
    with torch.no_grad():
        alone = loss(loss.parameters, select(batch, slice(0, (size + 1) // 2))).sum()
        difference = float((outcome.weighted(there) - alone).abs())
    if not difference <= tolerance * size:
        raise TaskError(
            f"{name}: giving half of a batch the weight 0 is {difference:.2g} off from leaving it out; a sample of weight 0 "
            "must be in no loss of Outcome.weighted, neither in its own nor in those of others"
        )
    difference = float((effects - derivative).abs().max())
    if not difference <= tolerance:
        raise TaskError(
            f"{name}: the effects differ from the derivative of the weighted loss by its weights by {difference:.2g}; return "
            "from Outcome.effects what the losses of the whole batch change by when one sample counts a little more"
        )
