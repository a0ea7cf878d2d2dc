"""Forgetting a set of samples: new parameters, and a certificate of what they are like."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from diffin import vectors
from diffin.actions.checks import check_run, end_of
from diffin.actions.delete import path
from diffin.actions.delete.certificate import Certificate
from diffin.actions.delete.deletion import Deletion
from diffin.actions.delete.estimator import Linearised
from diffin.actions.delete.measuring import Data, measured_models, retrain
from diffin.actions.delete.regime import LARGEST_SLIP, Regime, learned, regime
from diffin.actions.delete.training import Recipe, train_on
from diffin.derivatives.gradient import SampleSet
from diffin.errors import DatasetError, DeletionError, DiffinError
from diffin.estimators import Estimator, Unrolled
from diffin.estimators.base import Run
from diffin.estimators.build import Draws, check_types, known_size, reader, usable_samples
from diffin.parameters import parameter_influence
from diffin.progress import phase
from diffin.rerun import Rerun
from diffin.sources import Collate, Indices, open_source
from diffin.sources.base import distinct_indices
from diffin.task import PerSampleLoss, Task, frozen, refuse_coupled
from diffin.trajectory import Trajectory
from diffin.vectors import Vector

_LOOKED_AT = 512
"""Kept samples on which the regime is measured."""


def delete(
    task: Task,
    trajectory: Trajectory,
    train_dataset: Any,
    samples: Sequence[int] | Indices,
    *,
    test: Any = None,
    estimator: Linearised | Estimator | None = None,
    recovery_steps: int = 0,
    retrained: bool | Mapping[str, Tensor] = False,
    shadows: int = 0,
    force: bool = False,
    seed: int = 0,
    batch_size: int = 256,
    collate: Collate | None = None,
    workers: int = 0,
    progress: bool = True,
) -> Deletion:
    """Forget a set of training samples: the parameters that training without them would have led to, approximately.

    The model of the task is not changed; load the result into it, ``model.load_state_dict(deletion.state)``. It is no
    guarantee in the sense of differential privacy: the certificate says what was measured.

    It takes as long as some hundred gradients of a few hundred samples, however long training was. Short trainings are
    therefore better repeated without the samples, which is exact: ``certificate.seconds`` says what either took.

    Args:
        task: model and loss.
        trajectory: what training left behind. A recording that can be repeated is needed for ``retrained=True`` and
            ``shadows`` only.
        train_dataset: what the run was trained on, by index.
        samples: indices into it, each once.
        test: samples never trained on: what attacks compare with. Without them there are no attacks.
        estimator: how the change is found. ``None`` for :class:`Linearised`; or what
            :func:`diffin.parameter_influence` takes, of which the parameters minus the influence are the new ones.
        recovery_steps: training steps on the kept samples afterwards, with batches and optimizer as recorded, at a tenth of
            the highest learning rate.
        retrained: ``True`` to repeat the training without the samples and compare; or the state of a model trained
            without them.
        shadows: trainings for the population attack, 8 or more to mean something; 0 for none.
        force: return the model even if the change is too large for the estimate.
        seed: of draws.
        batch_size: samples per pass. The result depends on it by rounding only.
        collate: makes a batch of a list of samples; ``None`` for the default.
        workers: processes that read the data.
        progress: show bars with the time left.

    Raises:
        DeletionError: the loss of kept samples rises by more than 3 % of what training took off it: the change is beyond
            the reach of the estimate, and the model broken; nothing is returned unless ``force``.
        DatasetError: a sample is not in the training set or comes twice, none is left, or the set is not of the size of the
            run's.
        TrajectoryError: the trajectory does not fit the model, or a training that has to be repeated cannot be.
        TaskError: the task's losses cannot be used.
        DerivativeError: the model cannot be linearised, or a loss is not finite.
    """
    refuse_coupled(task, "deletion")
    check_types(task, trajectory, Unrolled())
    if shadows < 0 or recovery_steps < 0:
        raise DiffinError(f"shadows={shadows}, recovery_steps={recovery_steps}: pass 0 or more")
    if shadows and test is None:
        raise DiffinError(
            f"shadows={shadows}: the attack tells the samples from test samples, and there are none; pass test=, or "
            "shadows=0"
        )
    train = open_source(train_dataset, collate=collate, workers=workers)
    check_run(task, trajectory, train)
    chosen = distinct_indices(samples, train.length)
    usable_samples(task, train, "training")
    size = known_size(trajectory, train)
    kept = np.setdiff1d(np.arange(train.length or size), chosen)
    if not len(kept):
        raise DatasetError("samples: nothing would be left to know; pass a part of the training set")
    if retrained is True or shadows:
        # A training that cannot be repeated is refused before the work, not after it.
        Rerun(task, trajectory, train).check_repeatable()
    original = path.last_state(trajectory).state
    estimator = estimator or Linearised(seed=seed)
    if isinstance(estimator, Linearised):
        estimator = estimator.resolved(len(chosen) / size)
    data = Data(
        train, chosen, kept, None if test is None else open_source(test, collate=collate, workers=workers), batch_size
    )

    start = time.perf_counter()
    delta = _change(task, trajectory, train_dataset, data, size, estimator, collate, workers, progress)
    measured = _regime(task, trajectory, original, delta, data, seed)
    if not measured.holds and not force:
        raise DeletionError(_refusal(measured, len(chosen), size))
    state = {name: t + delta[name].to(t) if name in delta else t.clone() for name, t in original.items()}
    if recovery_steps:
        recipe = Recipe.like(trajectory, recovery_steps, seed=seed)
        state = train_on(task, trajectory, train, kept, state, recipe)
    seconds = {"deletion": time.perf_counter() - start}

    models: dict[str, Mapping[str, Tensor]] = {"original": original, "deleted": state}
    if retrained is True:
        models["retrained"], seconds["retraining"] = retrain(task, trajectory, train, chosen, progress=progress)
    elif retrained is not False:
        models["retrained"] = dict(retrained)
    told = measured_models(task, trajectory, models, data, shadows, seed, progress)
    settings = {
        "samples": len(chosen),
        "dataset_size": size,
        "total_steps": trajectory.total_steps,
        "optimizer": trajectory.optimizer.kind if trajectory.optimizer is not None else None,
        "estimator": estimator.describe(),
        "run": end_of(trajectory),
        "recovery_steps": recovery_steps,
        "shadows": shadows,
        "forced": force and not measured.holds,
        "seed": seed,
    }
    return Deletion(state, chosen, Certificate(told, measured.to_json(), seconds, settings))


def _change(
    task: Task, trajectory: Trajectory, dataset: Any, data: Data, size: int, estimator: Linearised | Estimator,
    collate: Collate | None, workers: int, progress: bool,
) -> Vector:  # fmt: skip
    """The displacement, on the CPU."""
    if not isinstance(estimator, Linearised):
        found = parameter_influence(
            task, trajectory, dataset, data.chosen, estimator=estimator, batch_size=data.batch_size, collate=collate,
            workers=workers, progress=progress,
        )  # fmt: skip
        return vectors.scale({**found.vector, **found.buffers}, -1.0)
    with frozen(task.model):
        names = PerSampleLoss(task, trajectory.checkpoints[0].state).names
    draws = Draws(data.train, data.train.length or size, data.batch_size)
    run = Run(task, trajectory, names, size, data.train, None, draws)
    with phase("following the parameters", path.work(trajectory, estimator), show=progress) as bar:
        found_delta = path.follow(run, data.chosen, estimator, bar)
    return {name: t.detach().cpu() for name, t in found_delta.items()}


def _regime(
    task: Task, trajectory: Trajectory, original: Mapping[str, Tensor], delta: Vector, data: Data, seed: int
) -> Regime:
    generator = np.random.default_rng([seed, 1])
    some = np.sort(generator.choice(data.kept, min(_LOOKED_AT, len(data.kept)), replace=False))
    forgotten = SampleSet(reader(data.train.select(data.chosen), data.batch_size), "the samples")
    kept = SampleSet(reader(data.train.select(some), data.batch_size), "the kept samples")
    allowed = LARGEST_SLIP * max(learned(task, trajectory.stored[0].state, original, kept), 0.0)
    parameters = {name: t for name, t in delta.items() if name in dict(task.model.named_parameters())}
    device = task.device
    return regime(
        task, original, {name: t.to(device) for name, t in parameters.items()}, forgotten, kept, allowed=allowed
    )


def _refusal(found: Regime, count: int, size: int) -> str:
    return (
        f"deleting {count:,} of {size:,} samples is beyond the reach of the estimate: the mean loss of kept samples would go "
        f"from {found.kept_before:.3g} to {found.kept_actual[-1]:.3g} (a rise of {found.allowed:.2g} is allowed). Train "
        "again without them, delete fewer, or pass estimator=Linearised(intervals=20, curvature_samples=None); "
        "force=True returns the broken model"
    )
