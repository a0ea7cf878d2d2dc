"""Minimising a function of a vector in parameter space, by L-BFGS that can go on with what another function taught it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from diffin import vectors
from diffin.vectors import Vector

Function = Callable[[Vector], tuple[float, Vector]]
"""Its value at a point, and its gradient there."""

Pair = tuple[Vector, Vector]
"""A displacement, and the change of the gradient along it."""

_FALLING, _RISING = 0.9, 0.8
"""A step ends where no more than this share of the slope is left, or has turned into its opposite."""
_ROUNDING = 1e-6
"""Values may rise by this share of themselves: in single precision they do."""
_LEAST_CONVEX = 1e-10
"""A pair whose two vectors have no larger cosine says nothing."""
_LONGER = 30.0
_TRIES = 8


@dataclass(frozen=True)
class _Place:
    """A point, the value there and the gradient."""

    point: Vector
    value: float
    gradient: Vector


@dataclass(frozen=True)
class _Seen:
    """A pair, and the product of the two."""

    step: Vector
    change: Vector
    product: float


def minimise(
    function: Function, start: Vector, iterations: int, pairs: Iterable[Pair] = ()
) -> tuple[Vector, list[Pair]]:
    """A point lower than the start, after some iterations of L-BFGS (Liu and Nocedal, 1989), and what they saw.

    On a quadratic they are conjugate gradients, with one gradient each in the place of a product with the Hessian. Steps are
    accepted by slopes, as values of nearly equal points differ by less than they are rounded by. An iteration takes little
    more than one gradient.

    Args:
        function: to be minimised; nearly convex.
        start: where from.
        iterations: how many, at most.
        pairs: of a function of much the same curvature, the oldest first. They stand in for those that are found on the way,
            and a minimisation that would have to find them again begins where that one ended.

    Returns:
        The point, and all pairs: those given, and those found on the way.
    """
    known = [_Seen(*pair, vectors.dot(*pair)) for pair in pairs]
    here = _Place(start, *function(start))
    left = iterations + iterations // 2
    for _ in range(iterations):
        direction = vectors.scale(_newton(known, here.gradient), -1.0)
        slope = vectors.dot(here.gradient, direction)
        if not (slope < 0 and math.isfinite(slope)):
            break
        first = 1.0 if known else min(1.0, 1.0 / math.sqrt(-slope))
        there, tried = _along(function, here, direction, slope, first, min(left, _TRIES))
        left -= tried
        if there is None:
            break
        pair = vectors.add(there.point, here.point, -1.0), vectors.add(there.gradient, here.gradient, -1.0)
        product = vectors.dot(*pair)
        if math.isfinite(product) and product > _LEAST_CONVEX * vectors.norm(pair[0]) * vectors.norm(pair[1]):
            known.append(_Seen(*pair, product))
        here = there
    return here.point, [(pair.step, pair.change) for pair in known]


def _along(
    function: Function, here: _Place, direction: Vector, slope: float, length: float, tries: int
) -> tuple[_Place | None, int]:
    """A place along a direction where the slope is nearly gone, or none, and how many gradients that took."""
    short, falling, long = 0.0, slope, math.inf
    for tried in range(1, tries + 1):
        point = vectors.add(here.point, direction, length)
        there = _Place(point, *function(point))
        turned = vectors.dot(there.gradient, direction)
        lower = there.value <= here.value + _ROUNDING * abs(here.value)
        if lower and _FALLING * slope < turned <= -_RISING * slope:
            return there, tried
        if lower and turned < 0:
            # To where the slope would be gone if it went on turning like this.
            further = (length - short) * -turned / (turned - falling) if turned > falling else math.inf
            short, falling = length, turned
            length = min(length + further, _LONGER * length, (length + long) / 2)
        else:
            long = length
            share = -falling / (turned - falling) if turned > 0 else 0.5
            length = short + min(max(share, 0.1), 0.9) * (long - short)
    return None, tries


def _newton(known: Sequence[_Seen], gradient: Vector) -> Vector:
    """The inverse of the Hessian, as the pairs know it, times the gradient: the two loops of L-BFGS."""
    if not known:
        return gradient
    found, shares = gradient, []
    for pair in reversed(known):
        share = vectors.dot(pair.step, found) / pair.product
        found = vectors.add(found, pair.change, -share)
        shares.append(share)
    newest = known[-1]
    found = vectors.scale(found, newest.product / vectors.dot(newest.change, newest.change))
    for pair, share in zip(known, reversed(shares), strict=True):
        found = vectors.add(found, pair.step, share - vectors.dot(pair.change, found) / pair.product)
    return found
