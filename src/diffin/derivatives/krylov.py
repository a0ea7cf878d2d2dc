"""The Lanczos method from several vectors at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffin import stacks, vectors
from diffin.derivatives.lanczos import Floats
from diffin.vectors import Vector

_SPENT = 1e-6
"""Below which share of its length a vector is taken to lie in the space already."""


@dataclass(frozen=True)
class Space:
    """A symmetric operator on r dimensions.

    Attributes:
        values: Float64[ndarray, "r"], Ritz values, ascending.
        basis: r orthonormal vectors, stacked: Float[Tensor, "r *shape"] by parameter name.
        rotation: Float64[Tensor, "r r"], Ritz vectors (columns) in the coordinates of the basis.
    """

    values: Floats
    basis: Vector
    rotation: Tensor

    def coordinates(self, stack: Vector) -> Floats:
        """The part of every vector of a stack that lies in the space, along the Ritz vectors. Float64[ndarray, "r Q"]."""
        found: Floats = (self.rotation.T @ stacks.products(self.basis, stack)).numpy()
        return found

    def part(self, name: str, coordinates: Floats) -> Tensor:
        """A parameter of the vectors of these coordinates. Float[Tensor, "Q *shape"]."""
        weights = (self.rotation @ torch.from_numpy(coordinates)).T.to(self.basis[name])
        vectors_there: Tensor = torch.tensordot(weights, self.basis[name], dims=1)
        return vectors_there

    def diagonal(self, entries: Mapping[str, Tensor | float]) -> Floats:
        """A diagonal operator on the space, by its entries or one for each parameter. Float64[ndarray, "r r"]."""
        return self.coordinates(
            stacks.combined(self.rotation.T, {name: t * entries[name] for name, t in self.basis.items()})
        )


def krylov(product: Callable[[Vector], Vector], starts: Vector, rank: int) -> Space:
    """The Ritz pairs of the Krylov space of several vectors at once (block Lanczos), with full reorthogonalisation.

    Args:
        product: v -> A v, A symmetric.
        starts: a stack of vectors, not all zero.
        rank: dimensions at most, one product each; fewer where the space ends.
    """
    rank = min(rank, sum(t[0].numel() for t in starts.values()))
    basis: Vector = {
        name: torch.zeros((rank, *t.shape[1:]), dtype=t.dtype, device=t.device) for name, t in starts.items()
    }
    filled = 0
    projected = np.zeros((rank, rank))
    largest = 0.0

    def extend(vector: Vector, least: float) -> Floats:
        """The coordinates of a vector; what is left of it joins the basis if it is longer than ``least``."""
        nonlocal filled
        coordinates = np.zeros(rank)
        within = {name: t[:filled] for name, t in basis.items()}
        # Twice is enough: once leaves what rounding made of the large components.
        for _ in range(2 if filled else 0):
            shares = stacks.products(within, {name: t.unsqueeze(0) for name, t in vector.items()})
            vector = vectors.add(vector, stacks.at(stacks.combined(shares.T, within), 0), -1.0)
            coordinates[:filled] += shares[:, 0].numpy()
        size = vectors.norm(vector)
        if size > least and filled < rank:
            for name, t in vector.items():
                basis[name][filled] = t / size
            coordinates[filled] = size
            filled += 1
        return coordinates

    for start in stacks.unstacked(starts):
        extend(start, _SPENT * vectors.norm(start))
    done = 0
    while done < filled:
        following = product(stacks.at(basis, done))
        largest = max(largest, vectors.norm(following))
        projected[:, done] = extend(following, _SPENT * largest)
        done += 1
    # A is symmetric; of each pair of entries the one below the diagonal was measured when both vectors were there.
    lower = np.tril(projected[:filled, :filled])
    values, rotation = np.linalg.eigh(lower + np.tril(lower, -1).T)
    return Space(values, {name: t[:filled] for name, t in basis.items()}, torch.from_numpy(rotation))
