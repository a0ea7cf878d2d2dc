"""Kept samples that stand for all: those that hold back what forgetting would move are drawn more often, and count less.

What keeps the change small are the kept samples whose outputs it would move, too. A uniform draw misses some of them, there
is a direction in which nothing holds back, and the loss on the forgotten samples ends too high. With J_i the derivative of
the outputs of sample i, H_i the curvature of its loss in them and g_z the gradients of the samples to forget, the chance of
a sample rises with

    ( sum_z  < J_i P g_z, H_i J_i P g_z > )^(1/2),

the sum over z being estimated with a few random signs, ``sum_z s_z g_z`` (Hutchinson's trick). Draws are systematic, with
unequal probabilities (Madow, 1949), and weights are one over the probability.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from diffin import vectors
from diffin.derivatives.gradient import SampleSet, add_gradients, leaves
from diffin.derivatives.outputs import Cut, cut
from diffin.sources import Indices
from diffin.task import PerSampleLoss
from diffin.vectors import Vector

Floats = npt.NDArray[np.float64]

_SIGNS = 4
_UNIFORM = 0.3
"""Share of the chances that all samples have alike: no weight is more than so much above the mean's."""

_CANDIDATES = 4
"""Samples that are looked at for one that is drawn: what the looks cost does not grow with the training set."""


def candidates(kept: Indices, count: int | None, generator: np.random.Generator) -> Indices:
    """Those of the kept samples that are looked at, ascending."""
    if count is None or len(kept) <= _CANDIDATES * count:
        return kept
    return np.sort(generator.choice(kept, _CANDIDATES * count, replace=False))


def drawn(
    kept: Indices, count: int | None, relevance: Callable[[], Floats], generator: np.random.Generator
) -> tuple[Indices, Floats]:
    """Samples, ascending, and their weights, which add up to one.

    Args:
        kept: to choose from, ascending.
        count: how many; ``None`` for all.
        relevance: of each of them, 0 or more, if it is asked for: see :func:`relevance`.
        generator: of the draws.
    """
    if count is None or count >= len(kept):
        return kept, np.full(len(kept), 1 / len(kept))
    chances = probabilities(relevance(), count)
    # Systematic: along the line of all chances, one after the other in random order, every whole number falls on a sample.
    order = generator.permutation(len(kept))
    ends = np.cumsum(chances[order]) + generator.random()
    hit = np.floor(ends) > np.floor(ends - chances[order])
    chosen = np.sort(order[hit])
    weights = 1 / chances[chosen]
    return kept[chosen], weights / weights.sum()


def probabilities(relevance: Floats, count: int) -> Floats:
    """Chances that add up to ``count``, none above one. Float64[ndarray, "n"]"""
    total = relevance.sum()
    wanted = np.full(len(relevance), 1 / len(relevance))
    if total > 0 and math.isfinite(total):
        wanted = _UNIFORM * wanted + (1 - _UNIFORM) * relevance / total
    certain = np.zeros(len(wanted), dtype=bool)
    while True:
        rest = count - certain.sum()
        chances = np.where(certain, 1.0, rest * wanted / wanted[~certain].sum())
        if not (chances > 1).any():
            return chances
        certain |= chances > 1


def relevance(
    loss: PerSampleLoss, forgotten: SampleSet, kept: SampleSet, scale: Vector, generator: np.random.Generator
) -> Floats:
    """How much forgetting would move the outputs of kept samples if nothing held it back. Float64[ndarray, "n"]

    Use it inside :func:`diffin.task.frozen`.

    Args:
        loss: at a state of the training.
        forgotten: the samples to forget.
        kept: the samples to look at.
        scale: P^(1/2), by parameter.
        generator: of the signs.

    Raises:
        DerivativeError: the model cannot be linearised, see :func:`diffin.derivatives.outputs.cut`.
    """
    squares = np.zeros(1)
    for _ in range(_SIGNS):
        pushed = _signed(loss, forgotten, generator)
        direction = vectors.multiply(vectors.multiply(pushed, scale), scale)
        moved = [_curvature(cut(loss, loss.to_device(batch), direction)) for batch in kept.read()]
        squares = squares + torch.cat(moved).double().cpu().numpy()
    found: Floats = np.sqrt(np.nan_to_num(squares, nan=0.0, posinf=0.0))
    return found


def _signed(loss: PerSampleLoss, samples: SampleSet, generator: np.random.Generator) -> Vector:
    """``sum_z s_z g_z`` with random signs."""
    total = vectors.zeros_like(loss.parameters)
    point = leaves(loss.parameters)
    for batch in samples.read():
        with torch.enable_grad():
            losses = loss(point, loss.to_device(batch))
            signs = torch.from_numpy(generator.choice((-1.0, 1.0), len(losses))).to(losses)
            add_gradients(total, torch.autograd.grad((losses * signs).sum(), list(point.values()), allow_unused=True))
    return total


def _curvature(parts: Cut) -> Tensor:
    """``< t, H t >`` of every sample, t what its outputs move by. Float[Tensor, "B"]"""
    found = torch.zeros_like(parts.losses).detach()
    with torch.enable_grad():
        slopes = torch.autograd.grad(parts.losses.sum(), parts.seen, create_graph=True)
        along = sum((slope * t).sum() for slope, t in zip(slopes, parts.tangents, strict=True))
        if not (isinstance(along, Tensor) and along.requires_grad):
            return found
        bent = torch.autograd.grad(along, parts.seen, allow_unused=True)
    for product, tangent in zip(bent, parts.tangents, strict=True):
        # Outputs are of samples, or of their parts, one sample's after the other's.
        if product is not None and tangent.numel() % len(found) == 0:
            found += (product * tangent).reshape(len(found), -1).sum(dim=1)
    return found.clamp(min=0)
