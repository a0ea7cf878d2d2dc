"""Trainings that can be repeated exactly, one for every thing that a step may depend on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.utils.data import TensorDataset

from retrained import MakeOptimizer, PartlyUnused, Training, cnn, mlp, sgd


def adam(kind: type[Optimizer] = Adam, **options: Any) -> MakeOptimizer:
    return lambda model: kind(model.parameters(), **{"lr": 0.02, **options})


def two_groups(kind: type[Optimizer], first: dict[str, Any], second: dict[str, Any], **both: Any) -> MakeOptimizer:
    """The first layer in one group, everything else in another."""

    def make(model: nn.Module) -> Optimizer:
        named = dict(model.named_parameters())
        ours = [p for name, p in named.items() if name.startswith("0.")]
        theirs = [p for name, p in named.items() if not name.startswith("0.")]
        return kind([{"params": theirs, **second}, {"params": ours, **first}], **both)

    return make


def decaying(optimizer: Optimizer, step: int) -> None:
    """Rates that fall, differently in every group, and constants that change too."""
    for number, group in enumerate(optimizer.param_groups):
        group["lr"] = 0.05 * (number + 1) * 0.93**step
        if "betas" in group:
            group["betas"] = (0.8 + 0.005 * step, 0.95 + 0.002 * step)
        else:
            group["momentum"] = 0.5 + 0.02 * step
        group["weight_decay"] = 0.01 * (step % 3)


class Tied(nn.Module):
    """One weight in two layers, and two parameters that are added before they are used."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.head = nn.Linear(5, 5), nn.Linear(5, 5, bias=False), nn.Linear(5, 3)
        self.again.weight = self.first.weight
        self.extra = nn.Parameter(torch.randn(3, 5) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.again(torch.tanh(self.first(x))))
        return hidden @ (self.head.weight + self.extra).t() + self.head.bias


def with_dead_input(training: Training) -> Training:
    """The first input is always 0, so that its weights never have a gradient: v stays 0 in Adam."""
    for data in (training.train, training.query):
        data.tensors[0][:, 0] = 0
    return training


def with_strangers(training: Training) -> Training:
    """The last two samples are in no batch."""
    training.batches = [torch.where(batch >= training.size - 2, batch - 5, batch) for batch in training.batches]
    return training


REPEATABLE: dict[str, Callable[[], Training]] = {
    "sgd": lambda: with_strangers(Training(mlp, sgd())),
    "momentum": lambda: Training(mlp, sgd(momentum=0.9)),
    "dampening": lambda: Training(mlp, sgd(momentum=0.8, dampening=0.4, weight_decay=0.05)),
    "nesterov": lambda: Training(mlp, sgd(momentum=0.9, nesterov=True, weight_decay=0.05, lr=0.05)),
    "sgd that maximizes": lambda: Training(mlp, sgd(momentum=0.5, maximize=True, lr=0.02, weight_decay=0.1)),
    "adam": lambda: Training(mlp, adam()),
    "adam with decay": lambda: Training(mlp, adam(weight_decay=0.1)),
    "adamw": lambda: Training(mlp, adam(AdamW, weight_decay=0.3)),
    "amsgrad": lambda: Training(mlp, adam(amsgrad=True, betas=(0.8, 0.6))),
    "adamw that maximizes": lambda: Training(mlp, adam(AdamW, maximize=True)),
    "adam with an input that is never active": lambda: with_dead_input(Training(mlp, adam())),
    "groups": lambda: Training(mlp, two_groups(SGD, {"lr": 0.3}, {"lr": 0.05, "weight_decay": 0.2}, momentum=0.7)),
    "groups of adamw": lambda: Training(mlp, two_groups(AdamW, {"lr": 0.03}, {"lr": 0.01, "betas": (0.5, 0.9)})),
    "changing sgd": lambda: Training(mlp, two_groups(SGD, {}, {}, momentum=0.5), schedule=decaying),
    "changing adam": lambda: Training(mlp, two_groups(Adam, {}, {}), schedule=decaying),
    "clipped": lambda: Training(mlp, sgd(momentum=0.9), clip=0.3),
    "clipped by the largest entry": lambda: Training(mlp, adam(AdamW), clip=0.05, norm_type=float("inf")),
    "micro-batches": lambda: Training(mlp, adam(AdamW), micro_batches=2),
    # Seven in four pieces: 2, 2, 2 and 1, whose means count the same.
    "uneven micro-batches": lambda: Training(mlp, sgd(), batch_size=7, micro_batches=4, clip=0.4),
    "dropout": lambda: Training(lambda: mlp(nn.Dropout(0.3)), sgd(momentum=0.5)),
    "dropout in micro-batches": lambda: Training(lambda: mlp(nn.Dropout(0.3)), adam(), micro_batches=3),
    "batch norm": lambda: Training(cnn, sgd(momentum=0.9), shape=(1, 6, 6)),
    # The bias before a normalisation has a gradient of rounding alone, which Adam would blow up but for its eps.
    "batch norm that averages": lambda: Training(
        lambda: cnn(None), adam(AdamW, eps=1e-3), shape=(1, 6, 6), micro_batches=2
    ),
    "tied": lambda: Training(Tied, sgd(momentum=0.9, lr=0.1)),
    "unused parameters": lambda: Training(PartlyUnused, sgd(momentum=0.9, weight_decay=0.1)),
}


def full_batch(training: Training) -> Training:
    """The same training with all samples in every batch."""
    every = [torch.arange(training.size)] * training.steps
    changed = replace(training, batch_size=training.size)
    changed.batches = every
    return changed


def set_of(dataset: TensorDataset) -> Any:
    """A whole data set as one that can be read again and again."""
    from diffin.derivatives.gradient import SampleSet

    return SampleSet(lambda: [dataset.tensors], "the set")
