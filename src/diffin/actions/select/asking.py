"""What a round asks of its training: how far labels are trusted, what every sample would do, how good the subset is."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from diffin.actions.select.evidence import Fit
from diffin.actions.select.rounds import Standing
from diffin.attribution.directions import build_directions
from diffin.attribution.engine import Engine
from diffin.attribution.queries import Queries
from diffin.errors import DiffinError
from diffin.estimators import Unrolled
from diffin.sample import Sample
from diffin.scoring.columns import Floats
from diffin.sources import Indices, Source
from diffin.task import PerSampleLoss, Task, frozen
from diffin.tasks import Classification
from diffin.trajectory import Trajectory

if TYPE_CHECKING:
    from diffin.actions.select.iterated import Iterated

_BLOCK_ROWS = 4096
_GRADIENT_BATCH = 256


@dataclass(frozen=True)
class Pool:
    """What is selected from, and how it is trained on.

    Attributes:
        task: model and loss.
        train: the pool of N samples.
        query: the samples that a subset is judged by in the end, and by which it is chosen for ``about="query"``.
        labels: Int64[ndarray, "N"], by which the subset is balanced; ``None`` not to balance it.
        usable: positions to choose from.
        fit: trains a new model on some of the pool, and records it.
    """

    task: Task
    train: Source
    query: Source | None
    labels: Indices | None
    usable: Indices
    fit: Fit

    @property
    def size(self) -> int:
        """N."""
        assert self.train.length is not None  # `select` has refused by now
        return self.train.length


@dataclass(frozen=True, eq=False)
class Seen:
    """Sums as in :class:`Standing`, this round included, and Float64[ndarray, "N"], how far a label is trusted."""

    probability: Floats
    unseen: Indices
    trust: Floats


def trusted(pool: Pool, settings: Iterated, trajectory: Trajectory, before: Standing, fraction: float) -> Seen:
    if not (settings.trust and isinstance(pool.task, Classification)) or settings.about == "query":
        return Seen(before.probability, before.unseen, np.ones(pool.size))
    # The plain cross-entropy, without label smoothing or class weights, is what a probability can be read from.
    now = np.nan_to_num(np.exp(-final_losses(Classification(pool.task.model), trajectory, pool.train)))
    outside = np.ones(pool.size, dtype=bool)
    outside[before.subset] = False
    probability = before.probability + np.where(outside, now, 0.0)
    unseen = before.unseen + outside
    mean = np.where(unseen > 0, probability / np.maximum(unseen, 1), now)
    return Seen(probability, unseen, np.clip(mean, 0, 1) ** (1 - fraction))


def influence_of(
    pool: Pool,
    settings: Iterated,
    trajectory: Trajectory,
    subset: Indices,
    trust: Floats,
    generator: np.random.Generator,
) -> Floats:
    """Float64[ndarray, "N"], of every sample on the risk that is asked about."""
    if settings.about == "query":
        assert pool.query is not None  # `select` has refused by now
        assert pool.query.length is not None
        asked = Queries(pool.query, (np.arange(pool.query.length),), np.zeros(1, np.int64), True, _GRADIENT_BATCH)
        found: Floats = _measured(pool, settings, trajectory, subset, asked)[:, 0]
        return found
    half = generator.permutation(pool.size) % 2
    counts = np.zeros(pool.size, dtype=bool)
    counts[pool.usable] = True
    counts &= generator.random(pool.size) < trust
    members = tuple(np.flatnonzero(counts & (half == which)).astype(np.int64) for which in range(2))
    if not all(len(part) for part in members):
        raise DiffinError(
            f"of {pool.size} samples hardly one is trusted; pass Iterated(trust=False), or look at the training: its models "
            "predict next to nothing"
        )
    asked = Queries(pool.train, members, np.arange(2, dtype=np.int64), True, _GRADIENT_BATCH)
    both = _measured(pool, settings, trajectory, subset, asked)
    return both[np.arange(pool.size), 1 - half]


def _measured(pool: Pool, settings: Iterated, trajectory: Trajectory, subset: Indices, asked: Queries) -> Floats:
    """Float64[ndarray, "N Q"], of every sample on every question; NaN where it is not finite."""
    estimator = settings.estimator.resolved(pool.task, trajectory, pool.train)
    # A walk reads the batches of the training; whatever draws a curvature set shall draw it of what was trained on.
    walks = isinstance(estimator, Unrolled) and estimator.propagation == "steps"
    with tempfile.TemporaryDirectory(prefix="diffin-directions-") as place, _quiet("diffin.estimators.build"):
        directions = build_directions(
            pool.task, trajectory, pool.train if walks else pool.train.select(subset), asked, estimator=estimator,
            parameters=None, output=Path(place), batch_size=_GRADIENT_BATCH, progress=False,
        )  # fmt: skip
        engine = Engine(pool.task, directions, block_rows=_BLOCK_ROWS)
        usable = Sample.of(pool.train).usable(pool.task)
        assert usable is not None  # directions were built of it
        result = np.full((pool.size, len(asked)), np.nan)
        with frozen(pool.task.model):
            for indices, influence in engine.measure(pool.train.batches(engine.batch_size(usable))):
                result[indices] = influence
    result[~np.isfinite(result).all(axis=1)] = np.nan
    return result


def held_out(pool: Pool, trajectory: Trajectory, trust: Floats) -> float:
    """The mean loss of the query or, without one, of the pool as far as it is trusted."""
    if pool.query is not None:
        return float(np.nanmean(final_losses(pool.task, trajectory, pool.query)))
    losses = final_losses(pool.task, trajectory, pool.train)
    known = np.isfinite(losses) & (trust > 0)
    return float(np.average(losses[known], weights=trust[known]))


def final_losses(task: Task, trajectory: Trajectory, source: Source) -> Floats:
    """Float64[ndarray, "N"], the loss of every sample after the training."""
    assert trajectory.final is not None
    parts = []
    with frozen(task.model), torch.inference_mode():
        loss = PerSampleLoss(task, trajectory.final.state)
        for _, batch in source.every(_GRADIENT_BATCH):
            parts.append(loss(loss.parameters, loss.to_device(batch)).double().cpu().numpy())
    return np.concatenate(parts)


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Keep a logger from warnings that do not apply: here, that a part of the pool is given, which is meant."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
