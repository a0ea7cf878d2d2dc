"""kronfluence: EK-FAC and the identity at the final state. It takes linear and convolutional layers only."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import torch
from question import FEW, Question, Scores
from torch.utils.data import Subset

from ekfac import Kronfluence

Asked = Iterator[tuple[dict[str, Any], Callable[[], Scores]]]


def identity(question: Question) -> Asked:
    """Inner products of gradients, at the final state only."""
    return _ask(question, "identity", [None])


def ekfac(question: Question) -> Asked:
    """The inverse Fisher matrix, layer by layer; without a value the damping is a tenth of the mean eigenvalue."""
    return _ask(question, "ekfac", [None, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1])


def _ask(question: Question, strategy: str, dampings: list[float | None]) -> Asked:
    torch.manual_seed(0)  # the Fisher matrix is of labels that the model draws
    with tempfile.TemporaryDirectory() as folder:
        method = Kronfluence(
            question.model(question.final["state"]),
            question.train,
            question.query,
            strategy=strategy,
            batch_size=100,
            folder=folder,
        )
        method.fit()

        def ask(damping: float | None) -> Scores:
            total = -method.scores(damping) / len(question.query) / len(question)
            return total, -method.pairwise(Subset(question.query, range(FEW)), damping) / len(question)

        for damping in dampings:
            yield {} if strategy == "identity" else {"damping": damping}, lambda damping=damping: ask(damping)
