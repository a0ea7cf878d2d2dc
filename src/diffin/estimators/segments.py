"""Carrying the adjoint of a training backwards through segments, each with the curvature of its checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from diffin import vectors
from diffin.derivatives.gradient import SampleSet, mean_gradient
from diffin.derivatives.hessian import HessianProduct, difference_product, hessian_vector_product
from diffin.derivatives.krylov import Space
from diffin.derivatives.lanczos import Floats, Spectrum, lanczos
from diffin.errors import TrajectoryError
from diffin.estimators.base import Built, Carried, Run
from diffin.estimators.response import StepResponse, respond, step_response
from diffin.probes import CheckpointProbes, Probe
from diffin.progress import Phase
from diffin.task import PerSampleLoss, frozen
from diffin.trajectory import Checkpoint, Trajectory
from diffin.vectors import Vector


@dataclass(frozen=True)
class Segment:
    """Steps around a checkpoint, taken to have its curvature and preconditioner.

    Attributes:
        checkpoint: where.
        responses: the constants of every step, those of the parameter group that moves fastest.
        ratios: learning rate of each parameter over that group's.
        coupled: weight decay that goes through the gradient, by parameter.
        decoupled: weight decay beside it, by parameter, times its ratio.
        squares: Adam's second moments, corrected for their start, as far as there are any; ``None`` for SGD.
        eps: what Adam adds to their roots, by parameter.
    """

    checkpoint: Checkpoint
    responses: tuple[StepResponse, ...]
    ratios: dict[str, float]
    coupled: dict[str, float]
    decoupled: dict[str, float]
    squares: Vector | None
    eps: dict[str, float]


def nearest(steps: Sequence[int], total_steps: int) -> list[tuple[int, int]]:
    """First step and end of what each state stands for: every step of the training belongs to the nearest."""
    return list(pairwise([0, *((a + b + 1) // 2 for a, b in pairwise(steps)), total_steps]))


Through = Callable[["Segment", PerSampleLoss, SampleSet, Vector, Vector], tuple[Vector, Vector, Vector]]
"""What a segment, with losses and curvature set at its checkpoint, makes of the adjoints of parameters and momentum buffer at
its end: its direction, and the two adjoints at its start."""


def build(
    run: Run,
    built: Built,
    bar: Phase,
    *,
    rank: int,
    samples: int | None,
    seed: int,
    hessian: HessianProduct,
) -> Iterator[tuple[CheckpointProbes, Carried]]:
    """The probes of every checkpoint, last first; what is carried are the adjoints at the start of its segment."""
    through = partial(_through, rank=rank, hessian=hessian)
    return carry(run, built, bar, run.query_gradient, through, samples=samples, seed=seed)


def carry(
    run: Run,
    built: Built,
    bar: Phase,
    adjoint: Callable[[PerSampleLoss], Vector],
    through: Through,
    *,
    samples: int | None,
    seed: int,
) -> Iterator[tuple[CheckpointProbes, Carried]]:
    """The probes of every checkpoint, last first.

    Args:
        run: the training.
        built: what is there already.
        bar: to advance by the number of checkpoints.
        adjoint: the gradient that the training ends with, of one query or stacked.
        through: passes a segment.
        samples: of the curvature set of a checkpoint.
        seed: of its draw.
    """
    trajectory = run.trajectory
    checkpoints = trajectory.checkpoints
    ranges = nearest([checkpoint.step for checkpoint in checkpoints], trajectory.total_steps)
    parameters: Vector | None = None
    buffer: Vector = {}
    missing = [checkpoint.step for checkpoint in checkpoints if not built.has(checkpoint.step)]
    later = [checkpoint.step for checkpoint in checkpoints if not missing or checkpoint.step > missing[-1]]
    bar.advance(len(later))
    if missing and later:
        carried = built.carried(later[0])
        parameters, buffer = _part(carried, "parameters"), _part(carried, "buffer")
    # What is there before the last missing one has to be passed again all the same.
    pending = list(zip(checkpoints, ranges, strict=True))[: len(checkpoints) - len(later)]
    for checkpoint, (start, stop) in reversed(pending):
        with frozen(run.task.model):
            if parameters is None:
                parameters = adjoint(run.loss(trajectory.final or checkpoints[-1]))
            loss = run.loss(checkpoint)
            direction, parameters, buffer = through(
                segment_of(trajectory, checkpoint, start, stop, run.names),
                loss,
                run.draw(samples, seed, checkpoint.step),
                vectors.like(parameters, loss.parameters),
                vectors.like(buffer, loss.parameters) if buffer else {},
            )
        probe = Probe(1 / run.dataset_size, direction)
        del direction
        carried = {f"parameters/{name}": t for name, t in parameters.items()}
        carried |= {f"buffer/{name}": t for name, t in buffer.items()}
        yield CheckpointProbes(checkpoint.step, checkpoint.state, (probe,)), carried
        del probe  # many directions may be stacked in it
        bar.advance()


def _through(
    segment: Segment,
    loss: PerSampleLoss,
    curvature: SampleSet,
    parameters: Vector,
    buffer: Vector,
    *,
    rank: int,
    hessian: HessianProduct,
) -> tuple[Vector, Vector, Vector]:
    """One query, by Lanczos from its adjoint."""
    scale = root_of_preconditioner(segment, loss, curvature)
    start = vectors.multiply(parameters, scale)
    if vectors.norm(start) == 0:
        nothing = vectors.zeros_like(loss.parameters)
        return nothing, parameters, nothing
    spectrum = lanczos(preconditioned(segment, loss, curvature, scale, hessian), start, rank)
    held = spectrum.coordinates(vectors.multiply(buffer, inverse(scale))) if buffer else np.zeros_like(spectrum.start)
    decay, coupled = decays(segment, spectrum, scale)
    response = respond(segment.responses, spectrum.values, spectrum.start, held, decay, coupled)
    # What the optimizer never moves (a preconditioner of zero) is handed on as it is.
    still = {name: torch.where(scale[name] == 0, t, 0.0) for name, t in parameters.items()}
    before = vectors.multiply(spectrum.vector(response.parameters), inverse(scale))
    return (
        vectors.multiply(spectrum.vector(response.direction), scale),
        vectors.add(before, still),
        vectors.multiply(spectrum.vector(response.buffer), scale),
    )


def preconditioned(
    segment: Segment, loss: PerSampleLoss, curvature: SampleSet, scale: Vector, hessian: HessianProduct
) -> Callable[[Vector], Vector]:
    """``v -> R (H + coupled decay) R v``, with R the scale and H the Hessian at the loss."""
    curved = multiplication(loss, curvature, hessian)

    def product(vector: Vector) -> Vector:
        scaled = vectors.multiply(vector, scale)
        return vectors.multiply(vectors.add(curved(scaled), vectors.scale(scaled, segment.coupled)), scale)

    return product


def multiplication(loss: PerSampleLoss, curvature: SampleSet, hessian: HessianProduct) -> Callable[[Vector], Vector]:
    """``v -> H v``, with H the Hessian of the mean loss over the curvature set; what all products share is done once."""
    if hessian == "difference":
        return partial(difference_product, loss, curvature, gradient=mean_gradient(loss, curvature).gradient)
    return partial(hessian_vector_product, loss, curvature, method=hessian)


def decays(segment: Segment, spectrum: Spectrum | Space, scale: Vector) -> tuple[Floats | None, Floats | None]:
    """Decoupled and coupled weight decay in Ritz coordinates, as :func:`diffin.estimators.response.respond` takes them."""
    decay = spectrum.diagonal(segment.decoupled) if any(segment.decoupled.values()) else None
    coupled = None
    if any(segment.coupled.values()) and any(step.clip < 1 for step in segment.responses):
        # In these coordinates the preconditioner stands on both sides of what goes through the gradient.
        coupled = spectrum.diagonal({name: t.square() * segment.coupled[name] for name, t in scale.items()})
    return decay, coupled


def segment_of(trajectory: Trajectory, checkpoint: Checkpoint, start: int, stop: int, names: list[str]) -> Segment:
    log, optimizer = trajectory.steps, trajectory.optimizer
    if log is None or optimizer is None:
        # Foreign checkpoints say one learning rate each; plain SGD is all that can be assumed.
        rate = checkpoint.learning_rate
        responses = (StepResponse(rate, rate, 1.0, 0.0, 1.0, 1.0, 0.0),) * (stop - start)
        nothing = dict.fromkeys(names, 0.0)
        return Segment(checkpoint, responses, dict.fromkeys(names, 1.0), nothing, nothing, None, {})
    if not optimizer.supported:
        raise TrajectoryError(
            f"the update formula of {optimizer.kind} is not known, so its steps cannot be unrolled; pass "
            "estimator=diffin.TracIn(), which asks for gradients only"
        )
    if any(constants["maximize"] for constants in log.constants(checkpoint.step)):
        raise TrajectoryError(
            "the optimizer maximized, and the curvature of segments is that of something minimized; pass "
            "estimator=diffin.Unrolled(propagation='steps') or diffin.Replay()"
        )
    means = log.learning_rates[start:stop].mean(axis=0)
    leading = int(np.argmax(means))
    taken = np.cumsum(~log.skipped) - 1
    responses = tuple(
        step_response(
            optimizer.kind,
            log.constants(step)[leading],
            int(taken[step]),
            float(log.learning_rates[step, leading]),
            log.clip_coefficient(step),
        )
        for step in range(start, stop)
        if not log.skipped[step]
    )
    ratios, coupled, decoupled = (dict.fromkeys(names, 0.0) for _ in range(3))
    for group, constants, mean in zip(optimizer.groups, log.constants(checkpoint.step), means, strict=True):
        for name in group.names:
            if name in ratios:
                ratio = float(mean / means[leading]) if means[leading] else 1.0
                ratios[name] = ratio
                beside = constants.get("decoupled_weight_decay", False)
                (decoupled if beside else coupled)[name] = constants["weight_decay"] * (ratio if beside else 1.0)
    return Segment(checkpoint, responses, ratios, coupled, decoupled, *_second_moments(trajectory, checkpoint, names))


def root_of_preconditioner(segment: Segment, loss: PerSampleLoss, curvature: SampleSet) -> Vector:
    """R: the square root of what the optimizer multiplies a gradient with, the learning rate's ratio included."""
    squares = segment.squares
    if squares is not None and any(name in segment.eps and name not in squares for name in loss.parameters):
        # Before the first step, or before the first gradient of a parameter, there is no moment: the next is this one.
        gradient = mean_gradient(loss, curvature).gradient
        squares = {name: squares[name] if name in squares else g.square() for name, g in gradient.items()}
    scale = {}
    for name, parameter in loss.parameters.items():
        factor = torch.full_like(parameter, segment.ratios[name])
        if squares is not None and name in segment.eps:
            # Where nothing has ever moved there is no gradient either; 1 / eps would only drown what matters.
            square = squares[name].to(parameter)
            factor = torch.where(square > 0, factor / (square.sqrt() + segment.eps[name]), 0.0)
        scale[name] = factor.sqrt()
    return scale


def _second_moments(
    trajectory: Trajectory, checkpoint: Checkpoint, names: list[str]
) -> tuple[Vector | None, dict[str, float]]:
    """Adam's second moments, corrected for their start, as far as they are stored, and eps; ``None`` for SGD."""
    optimizer, log = trajectory.optimizer, trajectory.steps
    if optimizer is None or log is None or optimizer.kind == "SGD":
        return None, {}
    state = checkpoint.optimizer_state
    squares: Vector = {}
    floors: dict[str, float] = {}
    for group, constants in zip(optimizer.groups, log.constants(checkpoint.step), strict=True):
        for name in set(group.names) & set(names):
            floors[name] = constants["eps"]
            if "exp_avg_sq" in state.get(name, {}):
                kept = state[name]["max_exp_avg_sq" if constants["amsgrad"] else "exp_avg_sq"]
                squares[name] = kept / (1 - constants["betas"][1] ** float(state[name]["step"]))
    return squares, floors


def inverse(scale: Vector) -> Vector:
    return {name: torch.where(t > 0, 1 / t, 0.0) for name, t in scale.items()}


def _part(carried: Carried, part: str) -> dict[str, Tensor]:
    prefix = part + "/"
    return {name.removeprefix(prefix): t for name, t in carried.items() if name.startswith(prefix)}
