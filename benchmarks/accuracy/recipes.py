"""How the networks of the accuracy benchmarks are trained. Needs PyTorch only: one of the other libraries needs every step
of a training, and takes them again in its own environment.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR


@dataclass(frozen=True)
class Recipe:
    """An optimizer and its learning rates.

    Attributes:
        optimizer: `sgd` (with coupled weight decay) or `adamw`.
        schedule: of the learning rate, by step: `constant`, `cosine`, or `warm-up` for a tenth of the steps and then cosine.
    """

    optimizer: str
    learning_rate: float
    schedule: str
    momentum: float = 0.0
    weight_decay: float = 0.0

    def build(self, parameters: Iterable[nn.Parameter], steps: int) -> tuple[Optimizer, LambdaLR]:
        """The optimizer, and the scheduler that steps after each of its steps."""
        optimizer: Optimizer
        if self.optimizer == "sgd":
            optimizer = SGD(parameters, self.learning_rate, momentum=self.momentum, weight_decay=self.weight_decay)
        else:
            optimizer = AdamW(parameters, self.learning_rate, weight_decay=self.weight_decay)
        return optimizer, LambdaLR(optimizer, lambda step: _factor(self.schedule, step, steps))


def _factor(schedule: str, step: int, steps: int) -> float:
    """What the learning rate of a step is multiplied with."""
    if schedule == "constant":
        return 1.0
    warm = steps // 10 if schedule == "warm-up" else 0
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))
