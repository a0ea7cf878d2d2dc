"""Carrying many adjoints backwards through segments at once, with one Krylov space for all of them at each checkpoint.

A Lanczos run for every query would take rank x Q products with the Hessian. Here all queries share one Krylov space, grown
from all of them at once, and what one query finds of the curvature serves the others: three products a query are worth more
than ten on its own. From some thirty queries on, the cost no longer depends on their number; of more than a hundred, the
space is grown from those combinations of their (normalised) adjoints that hold most of them. The part of an adjoint that
lies in the space is carried along its Ritz vectors, each with its curvature (:mod:`diffin.estimators.response`), and the
rest as if the loss were flat there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor

from diffin import stacks, vectors
from diffin.derivatives.gradient import SampleSet
from diffin.derivatives.hessian import HessianProduct
from diffin.derivatives.krylov import Space, krylov
from diffin.derivatives.lanczos import Floats
from diffin.estimators import segments
from diffin.estimators.base import Built, Carried, Run
from diffin.estimators.response import Response, respond
from diffin.estimators.segments import Segment, decays, inverse, preconditioned, root_of_preconditioner
from diffin.estimators.unrolled import Unrolled
from diffin.probes import CheckpointProbes
from diffin.progress import Phase
from diffin.task import PerSampleLoss
from diffin.vectors import Vector

_SHARED = 30
"""The space has as many dimensions as so many queries would take on their own, ``rank`` each, or fewer for fewer queries."""

_DEPTH = 3
"""Products for each of the vectors that it is grown from, at least."""

_BYTES = 2**29
"""What the space takes at most."""


Passed = tuple[Vector, Vector, Vector]
"""The directions of a segment, and the adjoints of parameters and momentum buffer at its start, all of them stacked."""


def build(
    estimator: Unrolled, run: Run, built: Built, bar: Phase, adjoints: Callable[[PerSampleLoss], Vector]
) -> Iterator[tuple[CheckpointProbes, Carried]]:
    """The probes of every checkpoint, with the directions of all queries stacked; what is carried are the adjoints.

    Args:
        estimator: with everything decided.
        run: the training.
        built: what is there already.
        bar: to advance by the number of checkpoints.
        adjoints: the gradients that the training ends with, stacked.
    """
    assert estimator.hessian != "auto"  # it is `resolved` that is asked
    through = partial(_through, rank=estimator.rank, hessian=estimator.hessian)
    return segments.carry(run, built, bar, adjoints, through, samples=estimator.curvature_samples, seed=estimator.seed)


def _through(
    segment: Segment,
    loss: PerSampleLoss,
    curvature: SampleSet,
    parameters: Vector,
    buffer: Vector,
    *,
    rank: int,
    hessian: HessianProduct,
) -> Passed:
    """All queries: the direction of a segment, and their adjoints at its start."""
    scale = root_of_preconditioner(segment, loss, curvature)
    ahead = vectors.multiply(parameters, scale)
    dimensions = _dimensions(ahead, rank)
    starts = leading(ahead, max(1, dimensions // _DEPTH))
    if starts is None:
        nothing = {name: torch.zeros_like(t) for name, t in parameters.items()}
        return nothing, parameters, nothing
    space = krylov(preconditioned(segment, loss, curvature, scale, hessian), starts, dimensions)
    apart = flat(segment, scale)
    passed = through_diagonal(segment, scale, apart, parameters, buffer)
    add_space(segment, scale, space, apart, parameters, buffer, passed)
    return passed


def flat(segment: Segment, scale: Vector) -> dict[str, Response]:
    """What a segment makes of a unit of the adjoint of a parameter, and of its buffer, where weight decay alone bends."""
    return {
        name: _alone(segment, name, t, np.array([segment.coupled[name] * _squared(t)]), np.ones(1))
        for name, t in scale.items()
    }


def bent(segment: Segment, scale: Vector, curvatures: Floats, shares: Floats) -> dict[str, Response]:
    """The same where the preconditioned loss bends: the mean over some curvatures, Float64[ndarray, "n"], by their shares."""
    return {name: _alone(segment, name, t, curvatures, shares) for name, t in scale.items()}


def _alone(segment: Segment, name: str, scale: Tensor, curvatures: Floats, shares: Floats) -> Response:
    each = np.eye(len(curvatures))
    decay, coupled = segment.decoupled[name] * each, segment.coupled[name] * _squared(scale) * each
    one, other = (np.tile(unit, (len(curvatures), 1)) for unit in ([1.0, 0.0], [0.0, 1.0]))
    answer = respond(segment.responses, curvatures[:, None], one, other, decay, coupled)
    return Response(*(shares[None, :] @ part for part in (answer.direction, answer.parameters, answer.buffer)))


def _squared(scale: Tensor) -> float:
    return float(scale.square().mean())


def through_diagonal(
    segment: Segment, scale: Vector, apart: Mapping[str, Response], parameters: Vector, buffer: Vector
) -> Passed:
    """Carry adjoints through a segment whose curvature mixes nothing.

    Args:
        segment: which.
        scale: R, the root of its preconditioner.
        apart: what it makes of each parameter, by name.
        parameters: adjoints at its end, stacked.
        buffer: those of the momentum buffer; empty at the end of the training.
    """
    direction, before, memory = {}, {}, {}
    for name, t in parameters.items():
        size, answer = scale[name], apart[name]
        ahead = t * size
        held = buffer[name] * _inverted(size) if buffer else torch.zeros_like(ahead)

        def whole(part: Floats, ahead: Tensor = ahead, held: Tensor = held) -> Tensor:
            return float(part[0, 0]) * ahead + float(part[0, 1]) * held

        direction[name] = whole(answer.direction) * size
        # What the optimizer never moves (a preconditioner of zero) is handed on as it is.
        before[name] = whole(answer.parameters) * _inverted(size) + torch.where(size == 0, t, 0.0)
        memory[name] = whole(answer.buffer) * size
    return direction, before, memory


def add_space(
    segment: Segment,
    scale: Vector,
    space: Space,
    apart: Mapping[str, Response],
    parameters: Vector,
    buffer: Vector,
    passed: Passed,
) -> None:
    """Correct, in place, what :func:`through_diagonal` made of adjoints, where a space of the curvature mixes them."""
    unscale = inverse(scale)
    x = space.coordinates(vectors.multiply(parameters, scale))
    y = space.coordinates(vectors.multiply(buffer, unscale)) if buffer else np.zeros_like(x)
    decay, coupled = decays(segment, space, scale)
    inside = respond(segment.responses, space.values[:, None], x, y, decay, coupled)
    for kind, stack in zip(("direction", "parameters", "buffer"), passed, strict=True):
        size = unscale if kind == "parameters" else scale
        for name, t in stack.items():
            one, other = getattr(apart[name], kind)[0]
            t.add_(space.part(name, getattr(inside, kind) - one * x - other * y).mul_(size[name]))


def _inverted(scale: Tensor) -> Tensor:
    return torch.where(scale > 0, 1 / scale, 0.0)


def _dimensions(stack: Vector, rank: int) -> int:
    """Of the space that a stack of adjoints shares."""
    count = len(next(iter(stack.values())))
    of_one = sum(t[0].numel() * t.element_size() for t in stack.values())
    return max(rank, min(rank * min(count, _SHARED), _BYTES // max(1, of_one)))


def leading(stack: Vector, count: int) -> Vector | None:
    """Up to ``count`` combinations of a stack that hold most of its vectors, each of them brought to length 1.

    ``None`` if all are zero.
    """
    gram = stacks.products(stack, stack)
    lengths = gram.diagonal().clamp(min=0).sqrt()
    over = torch.where(lengths > 0, 1 / lengths, 0.0)
    sizes, rotation = torch.linalg.eigh(gram * over[:, None] * over[None, :])
    kept = [number for number in reversed(range(len(sizes))) if sizes[number] > 1e-12 * len(sizes)][:count]
    if not bool((lengths > 0).any()):
        return None
    return stacks.combined((rotation[:, kept] * over[:, None] / sizes[kept].sqrt()).T, stack)
