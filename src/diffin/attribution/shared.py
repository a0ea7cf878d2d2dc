"""Directions of many queries by segments, with one Krylov space for all of them at each checkpoint.

A Lanczos run for every query would take rank x Q products with the Hessian. Here all queries share one Krylov space, grown
from all of them at once, and what one query finds of the curvature serves the others: three products a query are worth more
than ten on its own. From some thirty queries on, the cost no longer depends on their number; of more than a hundred, the
space is grown from those combinations of their (normalised) adjoints that hold most of them. The part of an adjoint that
lies in the space is carried along its Ritz vectors, each with its curvature (:mod:`diffin.estimators.response`), and the
rest as if the loss were flat there.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from diffin import stacks, vectors
from diffin.attribution.queries import Queries
from diffin.derivatives.gradient import SampleSet
from diffin.derivatives.hessian import HessianProduct
from diffin.derivatives.krylov import krylov
from diffin.derivatives.lanczos import Floats
from diffin.estimators import Unrolled, segments
from diffin.estimators.base import Built, Carried, Run
from diffin.estimators.response import Response, respond
from diffin.estimators.segments import Segment, inverse, root_of_preconditioner
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


def build(
    estimator: Unrolled, run: Run, queries: Queries, built: Built, bar: Phase
) -> Iterator[tuple[CheckpointProbes, Carried]]:
    """The probes of every checkpoint, with the directions of all queries stacked; what is carried are the adjoints."""
    assert estimator.hessian != "auto"  # it is `resolved` that is asked
    through = partial(_through, rank=estimator.rank, hessian=estimator.hessian)
    return segments.carry(
        run, built, bar, queries.gradients, through, samples=estimator.curvature_samples, seed=estimator.seed
    )


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
    """All queries: the direction of a segment, and their adjoints at its start."""
    scale = root_of_preconditioner(segment, loss, curvature)
    unscale = inverse(scale)
    ahead = vectors.multiply(parameters, scale)
    held = vectors.multiply(buffer, unscale) if buffer else {name: torch.zeros_like(t) for name, t in ahead.items()}
    dimensions = _dimensions(ahead, rank)
    starts = leading(ahead, max(1, dimensions // _DEPTH))
    if starts is None:
        nothing = {name: torch.zeros_like(t) for name, t in parameters.items()}
        return nothing, parameters, nothing
    space = krylov(segments.preconditioned(segment, loss, curvature, scale, hessian), starts, dimensions)
    x, y = (space.coordinates(stack) for stack in (ahead, held))
    decay, coupled = segments.decays(segment, space, scale)
    inside = respond(segment.responses, space.values[:, None], x, y, decay, coupled)
    direction, before, memory = {}, {}, {}
    for name in ahead:
        left = [stack[name] - space.part(name, c) for stack, c in ((ahead, x), (held, y))]
        outside = _flat(segment, name, scale[name])

        def whole(within: Floats, beyond: Floats, name: str = name, left: list[Tensor] = left) -> Tensor:
            return space.part(name, within) + float(beyond[0, 0]) * left[0] + float(beyond[0, 1]) * left[1]

        direction[name] = whole(inside.direction, outside.direction) * scale[name]
        # What the optimizer never moves (a preconditioner of zero) is handed on as it is.
        still = torch.where(scale[name] == 0, parameters[name], 0.0)
        before[name] = whole(inside.parameters, outside.parameters) * unscale[name] + still
        memory[name] = whole(inside.buffer, outside.buffer) * scale[name]
    return direction, before, memory


def _dimensions(stack: Vector, rank: int) -> int:
    """Of the space that a stack of adjoints shares."""
    count = len(next(iter(stack.values())))
    of_one = sum(t[0].numel() * t.element_size() for t in stack.values())
    return max(rank, min(rank * min(count, _SHARED), _BYTES // max(1, of_one)))


def _flat(segment: Segment, name: str, scale: Tensor) -> Response:
    """What a segment makes of a unit of the adjoint of a parameter, and of its buffer, where weight decay alone bends."""
    coupled = np.array([[segment.coupled[name] * float(scale.square().mean())]])
    decay = np.array([[segment.decoupled[name]]])
    return respond(segment.responses, coupled, np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]]), decay, coupled)


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
