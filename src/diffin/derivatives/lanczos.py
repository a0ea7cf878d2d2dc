"""Functions of a symmetric operator applied to a vector, by the Lanczos method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from diffin import vectors
from diffin.vectors import Vector

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Spectrum:
    """The operator on the Krylov space of a vector: ``A ~ V diag(values) V'`` there.

    Attributes:
        values: Float64[ndarray, "k"], Ritz values, ascending.
        start: Float64[ndarray, "k"], the vector in the coordinates of the Ritz vectors; nothing of it is lost.
        basis: k orthonormal vectors.
        rotation: Float64[ndarray, "k k"], Ritz vectors (columns) in the coordinates of the basis.
    """

    values: Floats
    start: Floats
    basis: tuple[Vector, ...]
    rotation: Floats

    def vector(self, coordinates: Floats) -> Vector:
        """The vector of these coordinates."""
        weights = (self.rotation @ coordinates).tolist()
        return {
            name: sum(weight * q[name] for weight, q in zip(weights, self.basis, strict=True)) for name in self.basis[0]
        }

    def coordinates(self, vector: Vector) -> Floats:
        """The part of ``vector`` that lies in the space."""
        products: Floats = self.rotation.T @ np.array([vectors.dot(q, vector) for q in self.basis])
        return products

    def diagonal(self, entries: Mapping[str, Tensor | float]) -> Floats:
        """A diagonal operator on the space, by its entries or one for each parameter. Float64[ndarray, "k k"]."""
        scaled = [{name: t * entries[name] for name, t in q.items()} for q in self.basis]
        products = [[vectors.dot(p, q) for q in scaled] for p in self.basis]
        on_space: Floats = self.rotation.T @ np.array(products) @ self.rotation
        return on_space


def lanczos(product: Callable[[Vector], Vector], start: Vector, rank: int) -> Spectrum:
    """The Ritz pairs of the Krylov space of ``start``, with full reorthogonalisation.

    Args:
        product: v -> A v, A symmetric.
        start: any vector that is not zero.
        rank: products to take at most; fewer where the space ends.
    """
    length = vectors.norm(start)
    basis: list[Vector] = []
    diagonal: list[float] = []
    beside: list[float] = []
    current = vectors.scale(start, 1 / length)
    while True:
        basis.append(current)
        following = product(current)
        diagonal.append(vectors.dot(current, following))
        # Twice is enough: once leaves what rounding made of the large components.
        for _ in range(2):
            for q in basis:
                following = vectors.add(following, q, -vectors.dot(q, following))
        size = vectors.norm(following)
        largest = max(map(abs, [*diagonal, *beside]))
        if len(basis) == rank or size <= 1e-6 * largest or largest == 0:
            break
        beside.append(size)
        current = vectors.scale(following, 1 / size)
    tridiagonal = np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1)
    values, rotation = np.linalg.eigh(tridiagonal)
    return Spectrum(values, length * rotation[0], tuple(basis), rotation)
