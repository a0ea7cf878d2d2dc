"""Measuring models that were to forget: beside the original, beside one trained without the samples, and under attack."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffin.actions.delete import path
from diffin.actions.delete.certificate import Certified, Looked, certified, left_out, look
from diffin.actions.delete.membership import shadow_states
from diffin.estimators.build import known_size
from diffin.progress import phase
from diffin.rerun import Rerun
from diffin.sources import Collate, Indices, Source, open_source
from diffin.sources.base import distinct_indices
from diffin.task import Task
from diffin.trajectory import Trajectory


@dataclass(frozen=True)
class Data:
    """The samples of a deletion.

    Attributes:
        train: the training set.
        chosen: those to forget, ascending.
        kept: the others, ascending.
        test: samples never trained on.
        batch_size: samples per pass.
    """

    train: Source
    chosen: Indices
    kept: Indices
    test: Source | None
    batch_size: int

    def sources(self) -> dict[str, Source]:
        """By set, as a certificate names them."""
        found = {"forgotten": self.train.select(self.chosen), "kept": self.train.select(self.kept)}
        return found if self.test is None else {**found, "test": self.test}


def certify(
    task: Task, trajectory: Trajectory, train_dataset: Any, samples: Sequence[int] | Indices,
    models: Mapping[str, Mapping[str, Tensor]], *, test: Any = None, shadows: int = 0, seed: int = 0, batch_size: int = 256,
    collate: Collate | None = None, workers: int = 0, progress: bool = False,
) -> dict[str, Certified]:  # fmt: skip
    """The numbers of the certificate for any models, e.g. what another way of forgetting made.

    Args:
        task: model and loss.
        trajectory: what training left behind; its last state is the ``"original"``.
        train_dataset: what the run was trained on.
        samples: those that were to be forgotten.
        models: every tensor of each by name; one called ``"retrained"`` is what the others are compared with.
        test: see :func:`delete`, as for what follows.
        shadows: see there.
        seed: see there.
        batch_size: see there.
        collate: see there.
        workers: see there.
        progress: see there.

    Returns:
        By name, the ``"original"`` among them.
    """
    train = open_source(train_dataset, collate=collate, workers=workers)
    chosen = distinct_indices(samples, train.length)
    kept = np.setdiff1d(np.arange(train.length or known_size(trajectory, train)), chosen)
    asked = None if test is None else open_source(test, collate=collate, workers=workers)
    data = Data(train, chosen, kept, asked, batch_size)
    everything = {"original": path.last_state(trajectory).state, **models}
    return measured_models(task, trajectory, everything, data, shadows, seed, progress)


def retrain(
    task: Task, trajectory: Trajectory, train: Source, chosen: Indices, *, progress: bool = False
) -> tuple[dict[str, Tensor], float]:
    """Repeat the recorded training with the chosen samples at weight 0 in their batches.

    Returns:
        Every tensor of the model at its end, by name, on the CPU; and the seconds it took.

    Raises:
        TrajectoryError: the training cannot be repeated.
    """
    start = time.perf_counter()
    rerun = Rerun(task, trajectory, train)
    rerun.check_repeatable()
    weights = torch.ones(trajectory.dataset_size or 0, dtype=torch.float64, device=rerun.loss.device)
    weights[torch.from_numpy(chosen).to(weights.device)] = 0
    assert trajectory.initial is not None  # Rerun has refused by now
    with rerun.entered(), phase("training without the samples (steps)", rerun.total_steps, show=progress) as bar:
        state = rerun.state(trajectory.initial)
        while state.step < rerun.total_steps:
            state = rerun.advance(state, weights)
            bar.advance()
    found = {**rerun.loss.rest, **state.parameters, **state.buffers}
    return {name: t.detach().cpu() for name, t in found.items()}, time.perf_counter() - start


def measured_models(
    task: Task, trajectory: Trajectory, models: Mapping[str, Mapping[str, Tensor]], data: Data, shadows: int, seed: int,
    progress: bool,
) -> dict[str, Certified]:  # fmt: skip
    """The numbers of models by name, ``"original"`` among them."""
    sources = data.sources()
    looked = {
        name: {which: look(task, state, source, data.batch_size) for which, source in sources.items()}
        for name, state in models.items()
    }
    attacked = None
    if shadows and data.test is not None:
        attacked = _shadow_losses(task, trajectory, data, shadows, seed, progress)
    names = dict(task.model.named_parameters())
    parameters = {name: {n: t for n, t in state.items() if n in names} for name, state in models.items()}
    ends = looked["original"]["forgotten"], looked.get("retrained", {}).get("forgotten")
    losses = float(ends[0].losses.mean()), None if ends[1] is None else float(ends[1].losses.mean())
    return {
        name: certified(
            entry,
            parameters=parameters[name],
            original=parameters["original"],
            retrained=parameters.get("retrained"),
            losses=losses,
            shadows=attacked,
        )
        for name, entry in looked.items()
    }


def _shadow_losses(
    task: Task, trajectory: Trajectory, data: Data, shadows: int, seed: int, progress: bool
) -> dict[str, Any]:
    assert data.test is not None
    shadows = max(2, shadows + shadows % 2)
    rerun = Rerun(task, trajectory, data.train)
    rerun.check_repeatable()
    with phase("training shadow models (steps)", shadows * trajectory.total_steps, show=progress) as bar:
        states, trained_on = shadow_states(rerun, data.chosen, shadows, seed, bar.advance)
    looked: dict[str, list[Looked]] = {
        which: [look(task, state, source, data.batch_size) for state in states]
        for which, source in (("forgotten", data.train.select(data.chosen)), ("test", data.test))
    }
    losses = {which: np.stack([entry.losses for entry in entries]) for which, entries in looked.items()}
    return {"forgotten": left_out(losses["forgotten"], trained_on), "test": losses["test"]}
