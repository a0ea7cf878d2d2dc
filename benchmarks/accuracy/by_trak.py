"""traker: TRAK, with the projector that it has for processors."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from question import FEW, Question, Scores
from torch.utils.data import DataLoader

DIMENSION = 512
DAMPINGS = (1e-2, 1e-1, 1.0, 10.0)
"""In units of the mean eigenvalue of the projected kernel."""

Asked = Iterator[tuple[dict[str, Any], Callable[[], Scores]]]


def final(question: Question) -> Asked:
    """At the final state."""
    return _ask(question, [question.final])


def several(question: Question) -> Asked:
    """Over the later checkpoints of the one run, in the place of the independent models that TRAK is made for."""
    return _ask(question, [*question.checkpoints[len(question.checkpoints) // 2 :], question.final])


def _ask(question: Question, checkpoints: list[dict[str, Any]]) -> Asked:
    from trak import TRAKer

    with tempfile.TemporaryDirectory() as folder:
        method = TRAKer(
            question.model(),
            "image_classification",  # the margin of a classifier, whatever the inputs are
            train_set_size=len(question),
            save_dir=folder,
            device="cpu",
            proj_dim=DIMENSION,
            use_half_precision=False,
            logging_level=logging.CRITICAL,
        )
        for number, checkpoint in enumerate(checkpoints):
            method.load_checkpoint(checkpoint["state"], model_id=number)
            for batch in DataLoader(question.train, 100):
                method.featurize(batch, num_samples=len(batch[1]))
        _finalize(method, DAMPINGS[0])
        for number, checkpoint in enumerate(checkpoints):
            method.start_scoring_checkpoint("query", checkpoint["state"], number, len(question.query))
            for batch in DataLoader(question.query, 100):
                method.score(batch, num_samples=len(batch[1]))
        slopes = _slopes(question)

        def ask(damping: float) -> Scores:
            _finalize(method, damping)
            effects = torch.tensor(method.finalize_scores("query")) * slopes
            return effects.mean(dim=1), effects[:, :FEW].T

        for damping in DAMPINGS:
            settings = {"damping": damping, "dimension": DIMENSION, "checkpoints": len(checkpoints)}
            yield settings, lambda damping=damping: ask(damping)


def _finalize(method: Any, damping: float) -> None:
    """The kernels inverted anew; gradients are kept."""
    for number, about in method.saver.model_ids.items():
        about["is_finalized"] = 0
        method.saver.load_current_store(number)
        gradients = torch.as_tensor(method.saver.current_store["grads"])
        # Finalizing frees the matrix of the projector, and fails where it has been freed before.
        method.projector.generate_sketch_matrix(method.projector.generator_states[0])
        method.score_computer.lambda_reg = damping * float(gradients.square().sum()) / DIMENSION
        method.finalize_features(model_ids=[number])


def _slopes(question: Question) -> torch.Tensor:
    """Float[Tensor, "Q"]: scores are effects on a margin f; this is how much the loss, log(1 + exp(-f)), changes with f."""
    with torch.no_grad():
        logits = question.model(question.final["state"])(question.query_inputs)
        return F.cross_entropy(logits, question.query_targets, reduction="none").neg().exp() - 1
