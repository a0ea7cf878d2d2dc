"""Following the difference that a set of samples makes, along the recorded training.

Let theta_t be the recorded parameters and theta_t + delta_t those of the same training without the set Z, batches averaged.
With K the samples that are kept, N the size of the training set and P what the optimizer multiplies gradients with,

    d delta / d tau  =  -P q(delta),
    q(delta)  =  (|K| / N) ( g_K(theta_t + delta) - g_K(theta_t) ) - (|Z| / N) g_Z(theta_t),

where tau runs as the learning rates add up, times 1 / (1 - beta) for momentum. The difference of gradients is taken of the
network linearised at theta_t (:mod:`diffin.actions.delete.linearised`): its curvature is the Gauss-Newton part of the
Hessian, without the negative part that makes an expansion explode, and its loss is the real one, however far delta goes.

The equation is stiff. An implicit step of length h minimises something convex,

    (|K| / N) L_K(delta) - < (|K| / N) g_K(theta) + (|Z| / N) g_Z(theta), delta >  +  |P^(-1/2) (delta - delta_0)|^2 / 2h,

(the gradient of which is P^-1 (delta - delta_0) / h + q), so that a few iterations with one gradient each pass hundreds of
training steps. Two such stages an interval make the step of second order and still damp what is stiff: SDIRK2, Alexander,
"Diagonally Implicit Runge-Kutta Methods for Stiff O.D.E.'s" (1977), with gamma = 1 - sqrt(1/2).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from diffin import vectors
from diffin.actions.delete.drawing import candidates, drawn, relevance
from diffin.actions.delete.estimator import Linearised
from diffin.actions.delete.linearised import linearised_gradient
from diffin.actions.delete.minimise import Pair, minimise
from diffin.batches import batch_size, nbytes, to_device
from diffin.derivatives.gradient import MeanLoss, SampleSet, mean_gradient
from diffin.estimators.base import Run
from diffin.estimators.build import reader
from diffin.estimators.response import StepResponse
from diffin.estimators.segments import inverse, root_of_preconditioner, segment_of
from diffin.progress import Phase
from diffin.sources import Indices
from diffin.task import PerSampleLoss, frozen
from diffin.trajectory import Checkpoint, Trajectory
from diffin.vectors import Vector

_GAMMA = 1 - 0.5**0.5
_POLISHED = 0.02
"""How far the polish goes, as a share of the whole training's tau."""

_WIDER = 4
"""Samples of the polish for one of an interval's: what it takes back it must not learn from a few."""

_REMEMBERED = 2
"""How many stages' pairs of vectors are kept."""

_BATCH = 512
_HELD_BYTES = 2**28

_Loss = Callable[[Vector], MeanLoss]


@dataclass(frozen=True)
class _Set:
    """The samples of an interval.

    Attributes:
        forgotten: Z.
        kept: those that stand for K.
        weights: of each of those: Float64[Tensor, "n"], adding up to one.
        share: |Z| / N.
    """

    forgotten: SampleSet
    kept: SampleSet
    weights: Tensor
    share: float


class _Curvature:
    """What the stages have seen of the curvature so far; it changes little from one to the next.

    Args:
        iterations: of a stage.
    """

    def __init__(self, iterations: int) -> None:
        self._pairs: deque[Pair] = deque(maxlen=_REMEMBERED * iterations)

    def taken(self, metric: _Metric, length: float) -> list[Pair]:
        """All of it, in the coordinates of a stage of that length, what keeps it short included; nothing is held twice."""
        unscale = inverse(metric.scale)
        taken = []
        while self._pairs:
            step, change = self._pairs.popleft()
            turned = vectors.multiply(step, unscale)
            taken.append((turned, vectors.add(vectors.multiply(change, metric.scale), turned, 1 / length)))
        return taken

    def learn(self, pairs: Iterable[Pair], metric: _Metric, length: float) -> None:
        """What a stage knew and found, in its coordinates."""
        unscale = inverse(metric.scale)
        for step, change in pairs:
            own = vectors.multiply(vectors.add(change, step, -1 / length), unscale)
            self._pairs.append((vectors.multiply(step, metric.scale), own))


@dataclass(frozen=True)
class _Metric:
    """What a step is measured by.

    Attributes:
        scale: P^(1/2), by parameter; 0 where the optimizer moves nothing.
        length: tau of the interval.
        coupled: weight decay that goes through the gradient, by parameter.
        decoupled: weight decay beside it, by parameter, over what ``length`` counts.
    """

    scale: Vector
    length: float
    coupled: Mapping[str, float]
    decoupled: Mapping[str, float]


def work(trajectory: Trajectory, estimator: Linearised) -> int:
    """Stages, for the progress bar."""
    return 2 * len(boundaries(trajectory, estimator.intervals)) - 2 + bool(estimator.polish)


def boundaries(trajectory: Trajectory, intervals: int | None) -> list[int]:
    """Steps between which the difference is followed: of stored states, the end of the training among them."""
    assert intervals is not None  # it is `resolved` that is asked
    steps = [checkpoint.step for checkpoint in trajectory.stored]
    if steps[0] > 0:
        # Foreign checkpoints: what led to the first is taken to have been as at the first.
        steps.insert(0, 0)
    chosen = np.unique(np.linspace(0, len(steps) - 1, min(intervals, len(steps) - 1) + 1).round().astype(int))
    return [steps[number] for number in chosen]


def follow(run: Run, chosen: Indices, estimator: Linearised, bar: Phase) -> Vector:
    """How far the training without the samples ends from where it did, on the device of the model.

    Args:
        run: the training.
        chosen: Z, ascending.
        estimator: the settings.
        bar: to advance by :func:`work`.

    Raises:
        TrajectoryError: the formula of the optimizer is unknown.
        DerivativeError: a loss is not finite.
    """
    trajectory = run.trajectory
    generator = np.random.default_rng(estimator.seed)
    kept = np.setdiff1d(np.arange(run.train.length or run.dataset_size), chosen)
    forgotten, uniform = _held(run, chosen, "the samples"), _uniform(run, kept, estimator, generator)
    kept = candidates(kept, estimator.curvature_samples, generator)
    looked = _held(run, kept, "the kept samples")
    share = len(chosen) / run.dataset_size
    delta: Vector | None = None
    total = 0.0
    metric: _Metric | None = None
    curvature = _Curvature(estimator.iterations)
    for start, stop in pairwise(boundaries(trajectory, estimator.intervals)):
        metric = _metric(run, start, stop, uniform)
        total += metric.length
        if delta is None:
            delta = vectors.zeros_like(metric.scale)
        if metric.length:
            with frozen(run.task.model):
                loss = PerSampleLoss(run.task, _state_at(trajectory, (start + stop) / 2), run.names)
                relevant = partial(relevance, loss, forgotten, looked, metric.scale, generator)
                picked, weights = drawn(kept, estimator.curvature_samples, relevant, generator)
            stand_ins = _held(run, picked, "the curvature set")
            samples = _Set(forgotten, stand_ins, torch.from_numpy(weights), share)
            stage = partial(_stage, run, _GAMMA, metric, samples, curvature, estimator.iterations)
            middle = stage(start + _GAMMA * (stop - start), delta)
            bar.advance()
            # What the first stage says of the slope at the middle carries on to the end.
            ahead = vectors.add(delta, vectors.add(middle, delta, -1.0), (1 - _GAMMA) / _GAMMA)
            delta = stage(stop, ahead)
            bar.advance()
    # A trajectory without checkpoints has been refused by now.
    assert delta is not None
    assert metric is not None
    if estimator.polish:
        delta = _polished(run, delta, metric, _POLISHED * total, forgotten, uniform, share, curvature, estimator.polish)
        bar.advance()
    return delta


def last_state(trajectory: Trajectory) -> Checkpoint:
    """The state that is changed."""
    return trajectory.final or trajectory.stored[-1]


def _uniform(run: Run, kept: Indices, estimator: Linearised, generator: np.random.Generator) -> SampleSet:
    """Kept samples that stand for all wherever it is not the change that is followed."""
    count = estimator.curvature_samples
    if count is not None and _WIDER * count < len(kept):
        kept = np.sort(generator.choice(kept, _WIDER * count, replace=False))
    return _held(run, kept, "the kept samples")


def _held(run: Run, samples: Indices, name: str) -> SampleSet:
    """The samples in memory where they fit: a stage reads them some dozen times."""
    source = run.train.select(samples)
    batches = source.every(_BATCH)
    first = next(batches)[1]
    if nbytes(first) / batch_size(first) * len(samples) > _HELD_BYTES:
        return SampleSet(reader(source, _BATCH), name)
    held = [to_device(batch, run.task.device) for batch in (first, *(batch for _, batch in batches))]
    return SampleSet(lambda: held, name)


def _metric(run: Run, start: int, stop: int, kept: SampleSet) -> _Metric:
    checkpoint = min(run.trajectory.checkpoints, key=lambda c: abs(c.step - (start + stop) / 2))
    segment = segment_of(run.trajectory, checkpoint, start, stop, run.names)
    with frozen(run.task.model):
        scale = root_of_preconditioner(segment, run.loss(checkpoint), kept)
    length, decayed = _lengths(segment.responses)
    ratio = decayed / length if length else 0.0
    return _Metric(scale, length, segment.coupled, {n: d * ratio for n, d in segment.decoupled.items()})


def _lengths(steps: Sequence[StepResponse]) -> tuple[float, float]:
    """What tau advances by, for gradients (once momentum has answered a push in full) and for decoupled decay."""
    length = sum(
        step.decayed * step.clip * (step.gradient + step.buffer * step.kappa / (1 - step.beta)) for step in steps
    )
    return length, sum(step.decayed for step in steps)


def _state_at(trajectory: Trajectory, step: float) -> dict[str, Tensor]:
    """The state at a step, on the line between the stored ones around it; buffers are those of the earlier one."""
    stored = trajectory.stored
    before = [c for c in stored if c.step <= step] or [stored[0]]
    after = [c for c in stored if c.step >= step] or [stored[-1]]
    low, high = before[-1], after[0]
    state = low.state
    if high.step > low.step:
        share = (step - low.step) / (high.step - low.step)
        state |= {name: torch.lerp(state[name], t, share) for name, t in high.parameters.items()}
    return state


def _stage(
    run: Run, share: float, metric: _Metric, samples: _Set, curvature: _Curvature, iterations: int, step: float,
    anchor: Vector,
) -> Vector:  # fmt: skip
    """An implicit step of a share of the interval, from the anchor."""
    with frozen(run.task.model):
        loss = PerSampleLoss(run.task, _state_at(run.trajectory, step), run.names)

        def linearised(delta: Vector) -> MeanLoss:
            return linearised_gradient(loss, samples.kept, samples.weights, delta)

        kept = linearised(vectors.zeros_like(anchor)).gradient
        forgotten = mean_gradient(loss, samples.forgotten).gradient
        pull = vectors.add(vectors.scale(kept, 1 - samples.share), forgotten, samples.share)
        length = share * metric.length
        return _proximal(linearised, 1 - samples.share, pull, anchor, metric, length, curvature, iterations)


def _polished(
    run: Run, delta: Vector, metric: _Metric, length: float, forgotten: SampleSet, kept: SampleSet, share: float,
    curvature: _Curvature, iterations: int,
) -> Vector:  # fmt: skip
    """A last, short implicit step at the end of the training, of the network as it is."""
    with frozen(run.task.model):
        loss = PerSampleLoss(run.task, last_state(run.trajectory).state, run.names)
        pull = vectors.scale(mean_gradient(loss, kept).gradient, 1 - share)
        # Without the push of the forgotten samples, what is stiff would return to where it was.
        pull = vectors.add(pull, mean_gradient(loss, forgotten).gradient, share)

        def real(delta: Vector) -> MeanLoss:
            return mean_gradient(loss, kept, at=vectors.add(loss.parameters, delta))

        return _proximal(real, 1 - share, pull, delta, metric, length, curvature, iterations)


def _proximal(
    mean_loss: _Loss, share: float, pull: Vector, anchor: Vector, metric: _Metric, length: float, curvature: _Curvature,
    iterations: int,
) -> Vector:  # fmt: skip
    """Minimise ``share * loss - < pull, delta > + decay + |P^(-1/2) (delta - anchor)|^2 / 2 length``.

    The minimisation goes by ``u = P^(-1/2) (delta - anchor)``, in which the last term is round.
    """
    scale, unscale = metric.scale, inverse(metric.scale)

    def function(u: Vector) -> tuple[float, Vector]:
        delta = vectors.add(anchor, vectors.multiply(u, scale))
        found = mean_loss(delta)
        coupled = vectors.scale(delta, metric.coupled)
        # Decay beside the gradient is not preconditioned: in these coordinates P^-1 stands before it, as before the last.
        turned = vectors.scale(vectors.multiply(delta, unscale), metric.decoupled)
        gradient = vectors.add(vectors.add(vectors.scale(found.gradient, share), pull, -1.0), coupled)
        value = share * found.value - vectors.dot(pull, delta) + 0.5 * vectors.dot(coupled, delta)
        value += 0.5 * vectors.dot(turned, vectors.multiply(delta, unscale)) + vectors.dot(u, u) / (2 * length)
        whole = vectors.add(vectors.add(vectors.multiply(gradient, scale), turned), u, 1 / length)
        return value, whole

    found, pairs = minimise(function, vectors.zeros_like(anchor), iterations, curvature.taken(metric, length))
    curvature.learn(pairs, metric, length)
    return vectors.add(anchor, vectors.multiply(found, scale))
