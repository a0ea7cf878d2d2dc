"""captum: TracInCP over the checkpoints. Its influence functions take minutes on a small CNN, and are left to dattri."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from question import Question, Scores
from torch import Tensor, nn
from torch.utils.data import DataLoader

Asked = Iterator[tuple[dict[str, Any], Callable[[], Scores]]]

_FAST = {"Linear", "Conv2d"}
"""Layers whose gradients captum takes for a whole batch."""


def tracin(question: Question) -> Asked:
    """First order, at every checkpoint."""
    from captum.influence import TracInCP

    slow = {type(module).__name__ for module in question.model().modules() if list(module.parameters(False))} - _FAST
    if slow:
        raise ValueError(f"it takes the gradients of {', '.join(sorted(slow))} sample by sample, which takes minutes")

    def ask() -> Scores:
        with tempfile.TemporaryDirectory() as folder:
            paths = [_save(checkpoint, Path(folder)) for checkpoint in question.checkpoints]
            method = TracInCP(
                question.model(),
                question.train,
                paths,
                checkpoints_load_func=_load,
                loss_fn=nn.CrossEntropyLoss(reduction="sum"),
                batch_size=100,
                sample_wise_grads_per_batch=True,
            )
            total = method.influence(DataLoader(question.query, 100), aggregate=True).flatten()
        return -total * question.first_order_scale / len(question.query), None

    yield {"checkpoints": len(question.checkpoints)}, ask


def _save(checkpoint: dict[str, Any], folder: Path) -> str:
    path = folder / f"{checkpoint['step']}.pt"
    torch.save(checkpoint, path)
    return str(path)


def _load(model: nn.Module, path: str) -> float:
    checkpoint = torch.load(path, weights_only=True)
    state: dict[str, Tensor] = checkpoint["state"]
    model.load_state_dict(state)
    return float(checkpoint["learning_rate"])
