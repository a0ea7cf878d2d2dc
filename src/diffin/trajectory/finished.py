"""Trainings that other libraries' trainers saved, never recorded: what their folders say, as a trajectory.

The states and the optimizer's buffers are those that were saved. The learning rates are known at the states and where they
were logged, and taken to be linear in between; the norms of the gradients likewise. Which samples a step used is not known,
so nothing can be repeated.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from diffin.errors import TrajectoryError
from diffin.trajectory.assumed import AssumedLog, first_rate, line
from diffin.trajectory.checkpoints import Checkpoint
from diffin.trajectory.foreign import parameter_shapes, refuse_absurd
from diffin.trajectory.naming import Named, matched_groups, named
from diffin.trajectory.optimizers import OptimizerDescription, ParameterGroup, of_saved_groups
from diffin.trajectory.steps import FloatArray, StepLog

_log = logging.getLogger(__name__)

MOST_STEPS = 10_000_000
"""More steps than any training takes; what claims more is not a training."""


@dataclass(frozen=True)
class Save:
    """A state that a trainer saved.

    Attributes:
        step: optimizer steps taken before it.
        path: the file or folder.
        tensors: reads the model's tensors by name.
        optimizer: reads the state dict of the optimizer; returns ``None`` where it was not saved.
    """

    step: int
    path: Path
    tensors: Callable[[], dict[str, Tensor]]
    optimizer: Callable[[], Mapping[str, Any] | None]


@dataclass(frozen=True)
class Training:
    """What a folder says of a training.

    Attributes:
        saves: ascending by step.
        rates: learning rate of the first parameter group, by the number of steps before the step that used it.
        norms: norm of the gradients before clipping, likewise.
        max_norm: what they were clipped to; ``None`` if they were not.
        model: the model, as far as its parameters' names and order are known.
        decays: tells which parameters are in the first of two groups, where the library has such a rule.
        warms_from_zero: whether learning rates that rise at first rise from zero.
        decoupled: whether its Adam takes weight decay beside the gradient, where the file does not say.
    """

    saves: tuple[Save, ...]
    rates: Mapping[int, float] = field(default_factory=dict)
    norms: Mapping[int, float] = field(default_factory=dict)
    max_norm: float | None = None
    model: nn.Module | None = None
    decays: Callable[[nn.Module], list[str]] | None = None
    warms_from_zero: bool = False
    decoupled: bool = True


@dataclass(frozen=True)
class Assembled:
    """The parts of a trajectory."""

    total_steps: int
    optimizer: OptimizerDescription | None
    steps: StepLog | None
    checkpoints: tuple[Checkpoint, ...]
    stored: tuple[Checkpoint, ...]
    final: Checkpoint


class SavedState:
    """A state of a checkpoint, read when asked for."""

    def __init__(self, save: Save, names: Named, places: Mapping[int, str]) -> None:
        self.path = save.path
        self._save, self._names, self._places = save, names, places

    def model(self) -> dict[str, Tensor]:
        """The tensors by name."""
        tensors = self._save.tensors()
        refuse_absurd(self.path, tensors)
        return self._names.renamed(tensors, self.path)

    def optimizer(self) -> dict[str, dict[str, Any]]:
        """Its buffers by parameter name and key."""
        state = _states(self._save)
        tensors = {str(place): value for entry in state.values() for place, value in _tensors(entry).items()}
        refuse_absurd(self.path, tensors)
        return {self._places[place]: dict(entry) for place, entry in state.items() if place in self._places}

    def rng(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Refused."""
        raise TrajectoryError(
            f"{self.path} was not recorded: its random states are not read, so nothing can be repeated"
        )


def assemble(training: Training) -> Assembled:
    """Make a trajectory of what a folder says.

    Raises:
        TrajectoryError: files are damaged or do not fit together, or it cannot be told whose the optimizer's buffers are.
    """
    saves = training.saves
    for before, after in pairwise(saves):
        if after.step <= before.step:
            raise TrajectoryError(f"{before.path} and {after.path} are both of step {after.step}: remove one")
    total = saves[-1].step
    if not 0 < total <= MOST_STEPS:
        raise TrajectoryError(
            f"{saves[-1].path} says that {total} steps were taken; pass a folder of a finished training"
        )
    names = named(saves[0].tensors(), training.model, saves[0].path)
    shapes = names.shapes if names.shapes else parameter_shapes(names.renamed(saves[0].tensors(), saves[0].path))
    packed = [save.optimizer() for save in saves]
    # The model may be saved once more at the end, by itself.
    whole = [(s, o) for s, o in zip(saves, packed, strict=True) if o is not None]
    if not whole or any(optimizer is None for optimizer in packed[:-1]):
        return _without_optimizer(training, names, shapes, total)
    counts = {len(_groups(optimizer, save.path)) for save, optimizer in whole}
    if len(counts) > 1:
        raise TrajectoryError(
            f"{saves[0].path.parent} holds states of optimizers with {' and '.join(map(str, sorted(counts)))} parameter "
            "groups: pass a folder of one training"
        )
    described, places = _described(training, *whole[-1], names)
    rates = _interpolated_rates(training, {s.step: _rates_of(s, o) for s, o in whole}, whole[-1][1], total)
    constants = {
        save.step: of_saved_groups(_groups(optimizer, save.path), decoupled=training.decoupled)[2]
        for save, optimizer in whole
    }
    log = AssumedLog(rates, _clipping(training, total), {**constants, 0: constants[saves[0].step]})

    def checkpoint(save: Save, step: int) -> Checkpoint:
        used = tuple(rates[step].tolist()) if step < total else None
        return Checkpoint(step, used, SavedState(save, names, places), described.groups, shapes)

    return _assembled(saves, total, described, log, checkpoint)


def _assembled(
    saves: Sequence[Save],
    total: int,
    described: OptimizerDescription | None,
    log: StepLog | None,
    checkpoint: Callable[[Save, int], Checkpoint],
) -> Assembled:
    final = checkpoint(saves[-1], total)
    stored = (*(checkpoint(save, save.step) for save in saves[:-1]), final)
    chosen = stored[:-1]
    if not chosen:
        _log.warning("%s is the only state that was saved: it stands for the whole training", saves[-1].path)
        chosen = (checkpoint(saves[-1], total - 1),)
    return Assembled(total, described, log, chosen, stored, final)


def _without_optimizer(training: Training, names: Named, shapes: dict[str, tuple[int, ...]], total: int) -> Assembled:
    saves = training.saves
    _log.warning(
        "%s has no optimizer's state: the training is studied as plain SGD at its learning rates, which is far off if it was "
        "AdamW", saves[-1].path.parent,
    )  # fmt: skip
    if not training.rates:
        raise TrajectoryError(
            f"{saves[-1].path} tells no learning rate; read the files by Trajectory.from_checkpoints(paths, steps, "
            "learning_rates)"
        )
    rates = np.maximum(line(training.rates, total), 0.0)

    def checkpoint(save: Save, step: int) -> Checkpoint:
        used = (float(rates[step]),) if step < total else None
        return Checkpoint(step, used, SavedState(save, names, {}), None, shapes)

    return _assembled(saves, total, None, None, checkpoint)


def _described(
    training: Training, save: Save, packed: Mapping[str, Any], names: Named
) -> tuple[OptimizerDescription, dict[int, str]]:
    """The optimizer, and the name of the parameter at each place of its state dict."""
    path = save.path
    groups = _groups(packed, path)
    kind, supported, constants = of_saved_groups(groups, decoupled=training.decoupled)
    state = _states(save)
    of_groups = matched_groups(
        [[int(place) for place in group["params"]] for group in groups],
        {place: tuple(_tensors(entry)[key].shape) for place, entry in state.items() for key in _shaped(entry)},
        names,
        [{"lr": float(group["lr"]), **of} for group, of in zip(groups, constants, strict=True)],
        training.decays,
        path,
    )
    made = tuple(
        ParameterGroup(tuple(of.values()), constant) for of, constant in zip(of_groups, constants, strict=True)
    )
    return OptimizerDescription(kind, supported, made), {place: name for of in of_groups for place, name in of.items()}


def _rates_of(save: Save, packed: Mapping[str, Any]) -> list[float]:
    """Rates of the step after a state, one a group: the scheduler has stepped when a state is saved."""
    rates = [_number(group.get("lr"), save.path) for group in _groups(packed, save.path)]
    if any(rate < 0 for rate in rates):
        raise TrajectoryError(f"{save.path} has the learning rates {rates}: the file is damaged")
    return rates


def _interpolated_rates(
    training: Training, known: Mapping[int, list[float]], packed: Mapping[str, Any], total: int
) -> FloatArray:
    """Float64[ndarray, "steps groups"]."""
    groups = _groups(packed, training.saves[-1].path)
    bases = [_number(group.get("initial_lr", group.get("lr")), training.saves[-1].path) for group in groups]
    columns = []
    for number, base in enumerate(bases):
        points = {step: rates[number] for step, rates in known.items()}
        # What was logged is the rate of the first group; schedules multiply all by the same factor.
        factor = base / bases[0] if bases[0] else 1.0
        points = {**{step: rate * factor for step, rate in training.rates.items()}, **points}
        if 0 not in points:
            points[0] = first_rate(points, base, from_zero=training.warms_from_zero)
        columns.append(line(points, total))
    return np.maximum(np.stack(columns, axis=1), 0.0)


def _clipping(training: Training, total: int) -> FloatArray:
    """Float64[ndarray, "steps"]: what gradients were multiplied by."""
    if training.max_norm is None or not training.norms:
        return np.ones(total)
    norms = line(training.norms, total)
    return np.minimum(1.0, training.max_norm / (norms + 1e-6))


def _groups(packed: Mapping[str, Any], path: Path) -> list[Mapping[str, Any]]:
    groups = packed.get("param_groups")
    if not isinstance(groups, list) or not groups or not all(isinstance(g, Mapping) and "params" in g for g in groups):
        raise TrajectoryError(f"{path} has no parameter groups of an optimizer: it is damaged, or of another library")
    return groups


def _states(save: Save) -> dict[int, Mapping[str, Any]]:
    packed = save.optimizer()
    state = packed.get("state") if isinstance(packed, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(entry, Mapping) for entry in state.values()):
        raise TrajectoryError(f"{save.path} has no state of an optimizer: it is damaged, or of another library")
    return {int(place): entry for place, entry in state.items()}


def _tensors(entry: Mapping[str, Any]) -> dict[str, Tensor]:
    return {str(key): value for key, value in entry.items() if isinstance(value, Tensor)}


def _shaped(entry: Mapping[str, Any]) -> list[str]:
    """A buffer that has the shape of its parameter, if there is one."""
    return [key for key in ("exp_avg_sq", "exp_avg", "momentum_buffer") if isinstance(entry.get(key), Tensor)][:1]


def _number(value: Any, path: Path) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError):
        number = math.nan
    if not math.isfinite(number):
        raise TrajectoryError(f"{path} has the learning rate {value!r}: the file is damaged")
    return number
