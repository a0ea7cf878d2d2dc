"""What is usually done to make a model forget, to compare with. Each returns the new state, every tensor by name.

None of them says how many steps are enough: that is for a person to find out, with a retrained model beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffin.actions.delete.training import Recipe, train_on
from diffin.batches import Batch
from diffin.errors import DatasetError, TaskError
from diffin.sources import Collate, Indices, Source, open_source
from diffin.task import PerSampleLoss, Task
from diffin.tasks.supervised import TARGET_KEYS
from diffin.trajectory import Trajectory

State = dict[str, Tensor]


def fine_tuning(
    task: Task, trajectory: Trajectory, train: Any, samples: Indices, recipe: Recipe, *, collate: Collate | None = None
) -> State:
    """Go on training on the rest, and hope that the samples fade."""
    source, kept = _opened(train, samples, collate)
    return train_on(task, trajectory, source, kept, _last(trajectory), recipe)


def gradient_ascent(
    task: Task, trajectory: Trajectory, train: Any, samples: Indices, recipe: Recipe, *, collate: Collate | None = None
) -> State:
    """Go up the loss of the samples (Graves et al., "Amnesiac Machine Learning", 2021, undone by gradients)."""
    source, _ = _opened(train, samples, collate)

    def up(loss: PerSampleLoss, parameters: Mapping[str, Tensor], batch: Batch, step: int) -> Tensor:
        del step
        return -loss(parameters, batch).mean()

    return train_on(task, trajectory, source, np.asarray(samples), _last(trajectory), recipe, up)


def neggrad_plus(
    task: Task, trajectory: Trajectory, train: Any, samples: Indices, recipe: Recipe, *, keep: float = 0.95,
    collate: Collate | None = None,
) -> State:  # fmt: skip
    """Down the loss of the rest and up that of the samples (Kurmanji et al., SCRUB, NeurIPS 2023).

    Args:
        task: model and loss.
        trajectory: a recorded training.
        train: its training set.
        samples: those to forget.
        recipe: how to take the steps.
        keep: share of the rest in the objective; ``1 - keep`` goes up.
        collate: makes a batch of a list of samples.
    """
    source, kept = _opened(train, samples, collate)
    chosen = np.asarray(samples)

    def both(loss: PerSampleLoss, parameters: Mapping[str, Tensor], batch: Batch, step: int) -> Tensor:
        generator = np.random.default_rng([recipe.seed, 4, step])
        drawn = generator.choice(chosen, min(recipe.batch_size, len(chosen)), replace=False)
        forgotten = loss(parameters, loss.to_device(source.fetch(drawn))).mean()
        return keep * loss(parameters, batch).mean() - (1 - keep) * forgotten

    return train_on(task, trajectory, source, kept, _last(trajectory), recipe, both)


def random_relabel(
    task: Task, trajectory: Trajectory, train: Any, samples: Indices, recipe: Recipe, *, classes: int,
    collate: Collate | None = None,
) -> State:  # fmt: skip
    """Train on everything, the samples under other labels drawn at random (Golatkar et al., CVPR 2020; Graves et al., 2021).

    Args:
        task: model and loss, of classes.
        trajectory: a recorded training.
        train: its training set.
        samples: those to forget.
        recipe: how to take the steps. Half of every batch are the samples.
        classes: how many there are.
        collate: makes a batch of a list of samples.
    """
    source, kept = _opened(train, samples, collate)
    chosen = np.asarray(samples)
    half = replace(recipe, batch_size=max(1, recipe.batch_size // 2))
    moves = np.random.default_rng([recipe.seed, 5]).integers(1, classes, len(chosen))

    def relabelled(loss: PerSampleLoss, parameters: Mapping[str, Tensor], batch: Batch, step: int) -> Tensor:
        generator = np.random.default_rng([recipe.seed, 6, step])
        rows = generator.choice(len(chosen), min(half.batch_size, len(chosen)), replace=False)
        wrong = _moved(source.fetch(chosen[rows]), torch.from_numpy(moves[rows]), classes)
        return (loss(parameters, batch).mean() + loss(parameters, loss.to_device(wrong)).mean()) / 2

    return train_on(task, trajectory, source, kept, _last(trajectory), half, relabelled)


def _moved(batch: Batch, moves: Tensor, classes: int) -> Batch:
    """The batch with every class number moved on."""
    if isinstance(batch, Mapping):
        key = next((key for key in TARGET_KEYS if key in batch), None)
        if key is not None:
            return {**batch, key: (batch[key] + moves) % classes}
    elif isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], (batch[1] + moves) % classes
    raise TaskError("relabelling needs batches of (inputs, class numbers), or mappings with labels")


def _opened(train: Any, samples: Indices, collate: Collate | None) -> tuple[Source, Indices]:
    source = open_source(train, collate=collate)
    if source.length is None:
        raise DatasetError("forgetting by training needs samples by index; pass a map-style data set")
    return source, np.setdiff1d(np.arange(source.length), samples)


def _last(trajectory: Trajectory) -> State:
    return (trajectory.final or trajectory.stored[-1]).state
