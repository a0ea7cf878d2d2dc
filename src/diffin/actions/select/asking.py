"""What a round asks of its training: how far labels are trusted, what every sample would do, how good the subset is."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from diffin.actions.select.evidence import Fit
from diffin.actions.select.rounds import Standing
from diffin.attribution.directions import build_directions
from diffin.attribution.engine import Engine
from diffin.attribution.queries import Queries
from diffin.batches import Batch
from diffin.errors import DiffinError, TaskError
from diffin.estimators import Unrolled
from diffin.losses import Heed, losses_at
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
class Losses:
    """What a round's model says of the whole pool, from one pass over it.

    Attributes:
        own: Float64[ndarray, "N"], of the task; ``None`` if it was not asked for.
        plain: Float64[ndarray, "N"], the cross-entropy without label smoothing or class weights, from which a probability
            can be read; ``None`` if it was not asked for.
    """

    own: Floats | None
    plain: Floats | None


@dataclass(frozen=True, eq=False)
class Seen:
    """What models that were not trained on a sample make of its label.

    Attributes:
        probability: as in :class:`Standing`, this round included, and
        unseen: the same.
        belief: Float64[ndarray, "N"], the mean probability of the label.
        trust: Float64[ndarray, "N"], how far the label is trusted where the risk is asked about.
    """

    probability: Floats
    unseen: Indices
    belief: Floats
    trust: Floats


def look(pool: Pool, settings: Iterated, trajectory: Trajectory) -> Losses:
    """Go over the pool once for all that a round asks of its losses; not at all if it asks for nothing.

    Raises:
        TaskError: the task does not call its model, so that there is no output to take a probability from.
    """
    doubts = settings.trust and isinstance(pool.task, Classification) and settings.about != "query"
    if not doubts and pool.query is not None:
        return Losses(None, None)
    plain: list[Tensor] = []

    def heed(batch: Batch, output: Any) -> None:
        if output is None:
            raise TaskError(
                "the losses of the task are taken without a call of self.model(...), so the probability of a label cannot "
                "be read; pass Iterated(trust=False)"
            )
        plain.append(Classification(_Said(output)).losses(batch).double().cpu())

    own = _final_losses(pool.task, trajectory, pool.train, heed if doubts else None)
    return Losses(own if pool.query is None else None, torch.cat(plain).numpy() if doubts else None)


class _Said(nn.Module):
    """A model that has answered already."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self._output = output

    def forward(self, *_: Any, **__: Any) -> Any:
        return self._output


def trusted(plain: Floats | None, before: Standing, fraction: float, size: int) -> Seen:
    """How far every label of the pool is trusted: all of them fully where ``plain`` is ``None``."""
    if plain is None:
        return Seen(before.probability, before.unseen, np.ones(size), np.ones(size))
    now = np.nan_to_num(np.exp(-plain))
    outside = np.ones(size, dtype=bool)
    outside[before.subset] = False
    probability = before.probability + np.where(outside, now, 0.0)
    unseen = before.unseen + outside
    belief = np.clip(np.where(unseen > 0, probability / np.maximum(unseen, 1), now), 0, 1)
    return Seen(probability, unseen, belief, belief ** (1 - fraction))


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


def on_query(pool: Pool, trajectory: Trajectory) -> float:
    """The mean loss of the query."""
    assert pool.query is not None
    return float(np.nanmean(_final_losses(pool.task, trajectory, pool.query)))


def on_pool(own: Floats, belief: Floats) -> tuple[float, ...]:
    """The mean loss of the pool by the model of each round, a sample counting as far as its label is believed.

    Belief changes from round to round. So that rounds can be compared, all are judged by the newest: with weights of their
    own, a model is judged by other samples than the one before.

    Samples that a round was not trained on are no better judges of it, and were tried. What is outside is what the rounds
    have rejected, wrong labels before all: of 300 samples in two classes, a fifth of them wrong, half of them kept, the round
    that they chose had a test loss of .28, that of the whole pool one of .21 (random: .43).

    Args:
        own: Float64[ndarray, "R N"].
        belief: Float64[ndarray, "N"].
    """
    known = np.isfinite(own).all(axis=0)
    if not known.any():
        raise DiffinError("no sample has a finite loss after every round; look at the training: its models are broken")
    weights = belief[known] if belief[known].any() else None
    return tuple(np.average(own[:, known], axis=1, weights=weights).tolist())


def _final_losses(task: Task, trajectory: Trajectory, source: Source, heed: Heed | None = None) -> Floats:
    """Float64[ndarray, "N"], the loss of every sample after the training."""
    assert trajectory.final is not None
    batches = (batch for _, batch in source.every(_GRADIENT_BATCH))
    return losses_at(PerSampleLoss(task, trajectory.final.state), batches, heed=heed)


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
