"""The published procedure, one sample a call, as a baseline for time.

Written from its description, Eq. 9 of Tan et al. with the Hessian-gradient products of their Eq. 6: for every sample, every
checkpoint is loaded anew, a new random batch B is drawn, the gradient of the whole query set is taken again, and

    H v  ~  ( grad(theta + e v / |v|) - grad(theta) ) |v| / e.

Gradients at theta that are at hand are used again, so the time is no more than the description asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

Gradient = list[Tensor]


@dataclass(frozen=True)
class SavedCheckpoint:
    """A state dict on disk, the steps taken before it, and the learning rate of the next."""

    path: Path
    step: int
    learning_rate: float


def influence(
    sample: Sequence[Tensor],
    make_model: Callable[[], nn.Module],
    checkpoints: Sequence[SavedCheckpoint],
    train: Dataset[Any],
    query: DataLoader[Any],
    *,
    dataset_size: int,
    batch_size: int,
    epsilon: float = 1e-3,
) -> float:
    """Influence of one sample on the mean loss of the query."""
    total = 0.0
    for checkpoint in checkpoints:
        model = make_model()
        model.load_state_dict(torch.load(checkpoint.path, weights_only=True))
        batch = next(iter(DataLoader(train, batch_size, shuffle=True)))
        single = (sample[0].unsqueeze(0), sample[1].unsqueeze(0))
        of_batch = _gradient(model, lambda m, b=batch: _mean_loss(m, b))
        of_sample = _gradient(model, lambda m, b=single: _mean_loss(m, b))
        of_query = _gradient(model, lambda m: _loss_over(m, query))
        products = (
            _hessian_product(model, batch, of_sample, of_batch, epsilon),
            _hessian_product(model, single, of_batch, of_sample, epsilon),
        )
        inner = sum(float((g * (a + b)).sum()) for g, a, b in zip(of_query, *products, strict=True))
        total -= checkpoint.step * checkpoint.learning_rate**2 / (dataset_size * len(checkpoints)) * inner
    return total


def _mean_loss(model: nn.Module, batch: Sequence[Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def _loss_over(model: nn.Module, loader: DataLoader[Any]) -> Tensor:
    total, count = torch.zeros(()), 0
    for inputs, targets in loader:
        total = total + F.cross_entropy(model(inputs), targets, reduction="sum")
        count += len(targets)
    return total / count


def _gradient(model: nn.Module, loss: Callable[[nn.Module], Tensor]) -> Gradient:
    return list(torch.autograd.grad(loss(model), list(model.parameters())))


def _hessian_product(
    model: nn.Module, batch: Sequence[Tensor], vector: Gradient, at_theta: Gradient, epsilon: float
) -> Gradient:
    norm = float(sum(float(v.norm()) ** 2 for v in vector) ** 0.5)
    if not norm:
        return [torch.zeros_like(v) for v in vector]
    parameters = list(model.parameters())
    before = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for p, v in zip(parameters, vector, strict=True):
            p.add_(v, alpha=epsilon / norm)
    moved = _gradient(model, lambda m: _mean_loss(m, batch))
    with torch.no_grad():
        for p, saved in zip(parameters, before, strict=True):
            p.copy_(saved)
    return [(a - b) * (norm / epsilon) for a, b in zip(moved, at_theta, strict=True)]
