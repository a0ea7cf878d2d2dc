"""What is asked of the other libraries, as a file: tensors, numbers and words only. Needs PyTorch only.

{"case", "architecture", "dtype", "N", "steps",
"train": (inputs, targets), "query": (inputs, targets),
"checkpoints": [{"step", "learning_rate", "state"}, ...],    # the last one is the final state, and its rate is 0
"replay": {"state", "indices" (steps, batch), "recipe"},     # to take every step again
"peers": names, or absent for all,
"threads": 1}
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import models
import torch
from recipes import Recipe
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import TensorDataset

Scores = tuple[Tensor, Tensor | None]
"""Influence Float[Tensor, "N"] on the mean query loss, negative helps; and Float[Tensor, "Q' N"] on the loss of the first
few query samples, where that costs little.
"""

Peer = Callable[["Question"], Iterator[tuple[dict[str, Any], Callable[[], Scores]]]]
"""Yields settings, and what computes the scores with them; what it does before the first of them is preparation."""

FEW = 8
"""Query samples that are asked about one by one."""


class Question:
    """The training, samples and query that all peers are asked about."""

    def __init__(self, stored: dict[str, Any]) -> None:
        self.inputs, self.targets = stored["train"]
        self.query_inputs, self.query_targets = stored["query"]
        self.train = TensorDataset(self.inputs, self.targets)
        self.query = TensorDataset(self.query_inputs, self.query_targets)
        *self.checkpoints, self.final = stored["checkpoints"]
        self.architecture: str = stored["architecture"]
        self.dtype: torch.dtype = getattr(torch, stored["dtype"])
        self.steps: int = stored["steps"]
        self.replay: dict[str, Any] = stored["replay"]
        self.parameters = sum(parameter.numel() for parameter in self.model().parameters())

    @staticmethod
    def load(path: Path) -> dict[str, Any]:
        """The file, with nothing in it executed."""
        stored: dict[str, Any] = torch.load(path, weights_only=True)
        return stored

    def __len__(self) -> int:
        return len(self.targets)

    def model(self, state: dict[str, Tensor] | None = None) -> nn.Module:
        """The network in evaluation mode, in a state if there is one."""
        model = models.build(self.architecture).to(self.dtype).eval()
        if state is not None:
            model.load_state_dict(state)
        return model

    def optimizer(self, model: nn.Module) -> tuple[Optimizer, LambdaLR]:
        """Those that the training began with."""
        return Recipe(**self.replay["recipe"]).build(model.parameters(), self.steps)

    @property
    def first_order_scale(self) -> float:
        """What the sum over checkpoints of learning rate x inner product is multiplied with, to stand for all steps: each
        checkpoint for an equal share of them, and a sample for 1/N of each.
        """
        return self.steps / len(self.checkpoints) / len(self)
