"""Block Lanczos against eigendecompositions of dense matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffin import stacks
from diffin.derivatives.krylov import Space, krylov
from diffin.derivatives.lanczos import lanczos
from diffin.vectors import Vector

SIZE = 13


def vector(values: np.ndarray) -> Vector:
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    return {"a": tensor[:6].reshape(2, 3), "b": tensor[6:]}


def flat(of: Vector) -> np.ndarray:
    return torch.cat([of["a"].reshape(-1), of["b"]]).numpy()


def block_lanczos(product: Operator, of: list[Vector], rank: int) -> Space:
    return krylov(product, stacks.stacked(of), rank)


def coordinates(space: Space, of: Vector) -> np.ndarray:
    return space.coordinates(stacks.stacked([of]))[:, 0]


def back(space: Space, found: np.ndarray) -> np.ndarray:
    return flat({name: space.part(name, found[:, None])[0] for name in ("a", "b")})


class Operator:
    """Multiplies with a symmetric matrix of these eigenvalues, and counts."""

    def __init__(self, values: np.ndarray) -> None:
        basis, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(SIZE, SIZE)))
        self.matrix, self.products = basis @ np.diag(values) @ basis.T, 0

    def __call__(self, of: Vector) -> Vector:
        self.products += 1
        return vector(self.matrix @ flat(of))


def starts(count: int) -> list[Vector]:
    return [vector(row) for row in np.random.default_rng(1).normal(size=(count, SIZE))]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_of_full_rank_it_gives_functions_of_the_operator_on_every_start(count: int) -> None:
    values = np.linspace(-3, 5, SIZE)
    operator = Operator(values)
    space = block_lanczos(operator, starts(count), 100)
    assert operator.products == SIZE
    np.testing.assert_allclose(space.values, values, atol=1e-10)
    exact, basis = np.linalg.eigh(operator.matrix)
    for start in starts(count):
        found = back(space, np.exp(space.values) * coordinates(space, start))
        np.testing.assert_allclose(found, basis @ (np.exp(exact) * (basis.T @ flat(start))), atol=1e-8)


def test_of_one_start_it_is_lanczos() -> None:
    operator = Operator(np.linspace(0, 5, SIZE) ** 2)
    (start,) = starts(1)
    ours, theirs = block_lanczos(operator, [start], 6), lanczos(operator, start, 6)
    np.testing.assert_allclose(ours.values, theirs.values, atol=1e-10)
    np.testing.assert_allclose(np.abs(coordinates(ours, start)), np.abs(theirs.start), atol=1e-10)


def test_every_product_is_used_and_every_start_is_whole() -> None:
    operator = Operator(np.linspace(0, 5, SIZE))
    space = block_lanczos(operator, starts(3), 7)
    assert operator.products == len(space.values) == 7
    for start in starts(3):
        np.testing.assert_allclose(back(space, coordinates(space, start)), flat(start), atol=1e-10)
    basis = np.stack([flat(q) for q in stacks.unstacked(space.basis)], axis=1)
    np.testing.assert_allclose(basis.T @ basis, np.eye(7), atol=1e-12)
    projected = np.linalg.eigvalsh(basis.T @ operator.matrix @ basis)
    np.testing.assert_allclose(space.values, projected, atol=1e-10)


def test_starts_that_depend_on_each_other_or_are_zero_take_no_product() -> None:
    operator = Operator(np.concatenate([np.full(6, 2.0), np.full(7, 1.0)]))
    first, second = starts(2)
    both = {name: 3 * t - second[name] for name, t in first.items()}
    nothing = {name: torch.zeros_like(t) for name, t in first.items()}
    space = block_lanczos(operator, [first, nothing, second, both], 100)
    # Two eigenvalues: each start has a part in each of the two eigenspaces.
    assert operator.products == 4
    np.testing.assert_allclose(space.values, [1, 1, 2, 2], atol=1e-10)
