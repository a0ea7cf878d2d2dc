"""What recorded trainings say of every pair of a pool: what was seen of it as the model learned, and its influence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

import diffin
from diffin.trajectory import Trajectory
from training import Pool, embedded

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Seen:
    """What a pair looked like at m checkpoints and the end, among as many others as in a batch, drawn anew each time.

    Attributes:
        similarity: Float64[ndarray, "m+1 N"], of picture and caption: the CLIP-score.
        loss: Float64[ndarray, "m+1 N"].
        probability: Float64[ndarray, "m+1 N"], of the own caption and the own picture, mean of both.
    """

    similarity: Floats
    loss: Floats
    probability: Floats

    def signals(self) -> dict[str, Floats]:
        """By name, Float64[ndarray, "N"]; the larger, the more a pair is suspected to be worth nothing."""
        return {
            "clip-score": -self.similarity[-1],
            "mean clip-score": -self.similarity.mean(axis=0),
            "loss": self.loss[-1],
            "mean loss": self.loss.mean(axis=0),
            "el2n": 1 - self.probability.mean(axis=0),
        }


def seen(pool: Pool, trajectory: Trajectory) -> Seen:
    """Look at the whole pool through the models of a training."""
    task = pool.task()
    generator = torch.Generator().manual_seed(pool.seed)
    rows = []
    assert trajectory.final is not None
    for state in (*trajectory.checkpoints, trajectory.final):
        task.model.load_state_dict(state.state)
        rows.append(_seen(*embedded(task.model, pool.train), task.model.logit_scale.exp().item(), pool, generator))
    return Seen(*(np.stack(kind) for kind in zip(*rows, strict=True)))


def _seen(
    images: torch.Tensor, captions: torch.Tensor, scale: float, pool: Pool, generator: torch.Generator
) -> tuple[Floats, Floats, Floats]:
    similarity = (images * captions).sum(dim=1).double()
    loss, probability = torch.empty_like(similarity), torch.empty_like(similarity)
    order, size = torch.randperm(len(images), generator=generator), pool.recipe.group
    for start in range(0, len(order), size):
        # The last group is as large as the others: a loss among fewer is another one.
        group = order[start : start + size] if start + size <= len(order) else order[-size:]
        logits = scale * (images[group] @ captions[group].T).double()
        both = torch.stack([F.log_softmax(rows, dim=1).diagonal() for rows in (logits, logits.T)])
        loss[group], probability[group] = -both.mean(dim=0), both.exp().mean(dim=0)
    return similarity.numpy(), loss.numpy(), probability.numpy()


def influences(
    pool: Pool, trainings: Sequence[Path], estimator: diffin.estimators.ProbingEstimator, output: Path
) -> Floats:
    """Float64[ndarray, "N R"], on the query, of every pair of the pool by each training. Negative helps."""
    opened = [Trajectory.open(folder) for folder in trainings]
    scores = diffin.score(
        pool.task(), opened, pool.train, query=pool.query, estimator=estimator, output=output, progress=False
    )
    return np.nan_to_num(scores.terms) * len(opened)
