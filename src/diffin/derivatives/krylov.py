"""The Lanczos method from several vectors at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from diffin import vectors
from diffin.derivatives.lanczos import Spectrum
from diffin.vectors import Vector

_SPENT = 1e-6
"""Below which share of its length a vector is taken to lie in the space already."""


def block_lanczos(product: Callable[[Vector], Vector], starts: Sequence[Vector], rank: int) -> Spectrum:
    """The Ritz pairs of the Krylov space of several vectors, with full reorthogonalisation.

    It holds every start whole, and functions of A applied to any of them are polynomials in A as good as Lanczos from it
    alone would give with as many products for each.

    Args:
        product: v -> A v, A symmetric.
        starts: one vector or more, not all zero.
        rank: products to take at most, for all starts together, not fewer than starts; fewer are taken where the space ends.

    Returns:
        The spectrum; its ``start`` is the first of the starts.
    """
    basis: list[Vector] = []
    columns: list[list[float]] = []
    largest = 0.0

    def extend(vector: Vector, least: float) -> list[float]:
        """The coordinates of a vector; what is left of it joins the basis if it is longer than ``least``."""
        coordinates = np.zeros(len(basis))
        # Twice is enough: once leaves what rounding made of the large components.
        for _ in range(2):
            for number, q in enumerate(basis):
                share = vectors.dot(q, vector)
                coordinates[number] += share
                vector = vectors.add(vector, q, -share)
        size = vectors.norm(vector)
        found: list[float] = coordinates.tolist()
        if size > least and len(basis) < rank:
            basis.append(vectors.scale(vector, 1 / size))
            found.append(size)
        return found

    for start in starts:
        extend(start, _SPENT * vectors.norm(start))
    while len(columns) < len(basis):
        following = product(basis[len(columns)])
        largest = max(largest, vectors.norm(following))
        columns.append(extend(following, _SPENT * largest))
    projected = np.zeros((len(basis), len(basis)))
    for number, column in enumerate(columns):
        projected[: len(column), number] = column
    # A is symmetric; what lies below its band is the measured half.
    lower = np.tril(projected)
    values, rotation = np.linalg.eigh(lower + np.tril(lower, -1).T)
    space = Spectrum(values, np.zeros(len(basis)), tuple(basis), rotation)
    return Spectrum(values, space.coordinates(starts[0]), space.basis, rotation)
