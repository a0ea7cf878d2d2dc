"""Unrolled by segments, forward: what a set of samples adds to the training, carried through segments to its end.

In the coordinates in which the preconditioner is 1, with R its root and H the curvature of a checkpoint, a segment takes
(x, y) = (R^-1 I, R M), I and M the derivatives of parameters and momentum buffer, and the push s = R G_Z / N of its steps,
through the recursion of :mod:`diffin.estimators.response`. One Krylov space of R H R holds all three.
"""

from __future__ import annotations

import numpy as np
import torch

from diffin import stacks, vectors
from diffin.derivatives.gradient import SampleSet
from diffin.derivatives.hessian import HessianProduct
from diffin.derivatives.krylov import krylov
from diffin.estimators.base import Run
from diffin.estimators.response import move
from diffin.estimators.segments import (
    Segment,
    decays,
    inverse,
    nearest,
    preconditioned,
    root_of_preconditioner,
    segment_of,
)
from diffin.parameters.at_checkpoints import summed_gradient
from diffin.progress import Phase
from diffin.task import PerSampleLoss, frozen
from diffin.vectors import Vector


def carry(
    run: Run, samples: SampleSet, bar: Phase, *, rank: int, curvature_samples: int | None, seed: int,
    hessian: HessianProduct,
) -> Vector:  # fmt: skip
    """The change of the parameters at the end of the training.

    Args:
        run: the training; its query is not asked about.
        samples: Z.
        bar: to advance by the number of checkpoints.
        rank: Hessian products per checkpoint for each of the vectors that are followed, three but for the first segment.
        curvature_samples: see :class:`diffin.Unrolled`.
        seed: see there.
        hessian: see there.
    """
    trajectory = run.trajectory
    checkpoints = trajectory.checkpoints
    ranges = nearest([checkpoint.step for checkpoint in checkpoints], trajectory.total_steps)
    parameters: Vector | None = None
    buffer: Vector = {}
    for checkpoint, (start, stop) in zip(checkpoints, ranges, strict=True):
        with frozen(run.task.model):
            loss = run.loss(checkpoint)
            if parameters is None:
                parameters, buffer = vectors.zeros_like(loss.parameters), vectors.zeros_like(loss.parameters)
            push = vectors.scale(summed_gradient(loss, samples), 1 / run.dataset_size)
            curvature = run.draw(curvature_samples, seed, checkpoint.step)
            segment = segment_of(trajectory, checkpoint, start, stop, run.names)
            parameters, buffer = _through(segment, loss, curvature, parameters, buffer, push, rank, hessian)
        bar.advance()
    assert parameters is not None  # a trajectory without checkpoints has been refused by now
    return parameters


def _through(
    segment: Segment,
    loss: PerSampleLoss,
    curvature: SampleSet,
    parameters: Vector,
    buffer: Vector,
    push: Vector,
    rank: int,
    hessian: HessianProduct,
) -> tuple[Vector, Vector]:
    """The derivatives of parameters and momentum buffer at the end of a segment, from those at its start."""
    scale = root_of_preconditioner(segment, loss, curvature)
    unscale = inverse(scale)
    x, y, s = (vectors.multiply(vector, by) for vector, by in ((parameters, unscale), (buffer, scale), (push, scale)))
    starts = [vector for vector in (s, x, y) if vectors.norm(vector) > 0]
    if not starts:
        return parameters, vectors.zeros_like(buffer)
    product = preconditioned(segment, loss, curvature, scale, hessian)
    space = krylov(product, stacks.stacked(starts), rank * len(starts))
    inside = space.coordinates(stacks.stacked([x, y, s])).T
    moved = move(segment.responses, space.values, inside[0], inside[1], inside[2], *decays(segment, space, scale))
    after = np.stack([moved.parameters, moved.buffer], axis=1)
    found = {name: space.part(name, after) for name in scale}
    # What the optimizer never moves (a preconditioner of zero) is handed on as it is.
    still = {name: torch.where(scale[name] == 0, t, 0.0) for name, t in parameters.items()}
    change = {name: t[0] * scale[name] for name, t in found.items()}
    return vectors.add(change, still), {name: t[1] * unscale[name] for name, t in found.items()}
