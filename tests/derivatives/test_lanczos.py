"""Lanczos against eigendecompositions of dense matrices."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffin import vectors
from diffin.derivatives.lanczos import Spectrum, lanczos
from diffin.vectors import Vector

SHAPES = {"a": (2, 3), "b": (4,), "c": ()}
SIZE = 11


def flat(vector: Vector) -> np.ndarray:
    return torch.cat([vector[name].reshape(-1) for name in SHAPES]).numpy()


def shaped(values: np.ndarray) -> Vector:
    parts = torch.from_numpy(np.ascontiguousarray(values)).split([int(np.prod(shape)) for shape in SHAPES.values()])
    return {name: part.reshape(shape) for (name, shape), part in zip(SHAPES.items(), parts, strict=True)}


def rotated(values: np.ndarray, seed: int = 0) -> np.ndarray:
    """A symmetric matrix with these eigenvalues."""
    basis, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values), len(values))))
    return basis @ np.diag(values) @ basis.T


class Operator:
    """Multiplies with a matrix, and counts."""

    def __init__(self, matrix: np.ndarray) -> None:
        self.matrix, self.products = matrix, 0

    def __call__(self, vector: Vector) -> Vector:
        self.products += 1
        return shaped(self.matrix @ flat(vector))


def function_of(matrix: np.ndarray, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    values, basis = np.linalg.eigh(matrix)
    return basis @ np.diag(function(values)) @ basis.T


def applied(spectrum: Spectrum, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    return flat(spectrum.vector(function(spectrum.values) * spectrum.start))


def basis_of(spectrum: Spectrum) -> np.ndarray:
    return np.stack([flat(q) for q in spectrum.basis], axis=1)


FUNCTIONS = {
    "inverse": lambda e: 1 / (e + 7),
    "exponential": np.exp,
    "a step of descent many times": lambda e: (1 - 0.1 * e) ** 30,
    "positive part": lambda e: np.clip(e, 0, None),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_of_full_rank_it_gives_functions_of_the_operator(name: str) -> None:
    values = np.linspace(-3, 5, SIZE)
    matrix, start = rotated(values), np.random.default_rng(1).normal(size=SIZE)
    operator = Operator(matrix)
    spectrum = lanczos(operator, shaped(start), 100)
    assert operator.products == SIZE
    np.testing.assert_allclose(spectrum.values, values, atol=1e-10)
    wanted = function_of(matrix, FUNCTIONS[name]) @ start
    np.testing.assert_allclose(applied(spectrum, FUNCTIONS[name]), wanted, atol=1e-9 * np.linalg.norm(wanted))


@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(st.floats(-100, 100), min_size=SIZE, max_size=SIZE),
    rank=st.integers(1, 20),
    seed=st.integers(0, 1000),
    size=st.sampled_from([1e-30, 1.0, 1e20]),
)
def test_whatever_the_operator(values: list[float], rank: int, seed: int, size: float) -> None:
    """The basis is orthonormal, the vector is recovered, and the operator is projected, at every rank and scale."""
    matrix, start = rotated(np.array(values), seed), np.random.default_rng(seed + 1).normal(size=SIZE) * size
    operator = Operator(matrix)
    spectrum = lanczos(operator, shaped(start), rank)
    basis = basis_of(spectrum)
    assert basis.shape[1] == operator.products <= min(rank, SIZE)
    np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-8)
    np.testing.assert_allclose(flat(spectrum.vector(spectrum.start)), start, atol=1e-8 * np.linalg.norm(start))
    # What is left where it breaks off is a millionth of the operator.
    projected = spectrum.rotation.T @ basis.T @ matrix @ basis @ spectrum.rotation
    largest = max(np.abs(values))
    np.testing.assert_allclose(projected, np.diag(spectrum.values), atol=1e-6 * largest + 1e-300)
    assert (np.diff(spectrum.values) >= 0).all()
    if rank >= 2:  # Polynomials below the rank are exact: Krylov spaces are made of them.
        found = flat(spectrum.vector(spectrum.values * spectrum.start))
        np.testing.assert_allclose(found, matrix @ start, atol=1e-5 * largest * np.linalg.norm(start) + 1e-300)


@pytest.mark.parametrize("inside", [1, 3])
def test_it_breaks_off_where_the_space_ends(inside: int) -> None:
    """A start in an invariant subspace needs as many products as that has dimensions, and is answered exactly."""
    values = np.linspace(1, 5, SIZE)
    matrix = rotated(values)
    _, eigenvectors = np.linalg.eigh(matrix)
    start = eigenvectors[:, 2 : 2 + inside] @ np.arange(1.0, inside + 1)
    operator = Operator(matrix)
    spectrum = lanczos(operator, shaped(start), 50)
    assert operator.products == inside
    np.testing.assert_allclose(spectrum.values, values[2 : 2 + inside], atol=1e-9)
    np.testing.assert_allclose(applied(spectrum, np.exp), function_of(matrix, np.exp) @ start, rtol=1e-8)


def test_equal_eigenvalues_and_an_operator_of_zero_take_one_product() -> None:
    for matrix in (np.zeros((SIZE, SIZE)), 3 * np.eye(SIZE)):
        operator = Operator(matrix)
        start = np.arange(1.0, SIZE + 1)
        spectrum = lanczos(operator, shaped(start), 50)
        assert operator.products == 1
        np.testing.assert_allclose(spectrum.values, matrix[0, :1])
        np.testing.assert_allclose(applied(spectrum, lambda e: e + 1), (matrix[0, 0] + 1) * start)


def test_coordinates_and_diagonals_are_those_of_the_ritz_vectors() -> None:
    matrix, generator = rotated(np.linspace(-1, 2, SIZE)), np.random.default_rng(3)
    spectrum = lanczos(Operator(matrix), shaped(generator.normal(size=SIZE)), 5)
    ritz = basis_of(spectrum) @ spectrum.rotation
    other = generator.normal(size=SIZE)
    np.testing.assert_allclose(spectrum.coordinates(shaped(other)), ritz.T @ other, atol=1e-12)
    np.testing.assert_allclose(spectrum.coordinates(spectrum.vector(np.arange(5.0))), np.arange(5.0), atol=1e-12)
    by_name = {"a": 0.5, "b": 2.0, "c": -1.0}
    entries = np.concatenate([np.full(6, 0.5), np.full(4, 2.0), [-1.0]])
    np.testing.assert_allclose(spectrum.diagonal(by_name), ritz.T @ np.diag(entries) @ ritz, atol=1e-12)
    np.testing.assert_allclose(spectrum.diagonal(shaped(other)), ritz.T @ np.diag(other) @ ritz, atol=1e-12)


def test_ill_conditioned_operators_in_single_precision_keep_an_orthogonal_basis() -> None:
    """Without reorthogonalisation, converged eigenvectors would come back as copies."""
    matrix = torch.from_numpy(rotated(np.logspace(-6, 3, SIZE))).float()

    def product(vector: Vector) -> Vector:
        whole: Tensor = torch.cat([vector[name].reshape(-1) for name in SHAPES])
        return shaped((matrix @ whole).numpy())

    start = shaped(np.ones(SIZE, dtype=np.float32))
    spectrum = lanczos(product, start, 8)
    basis = basis_of(spectrum).astype(np.float64)
    np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-5)
    assert spectrum.values[-1] == pytest.approx(1e3, rel=1e-5)
    assert vectors.norm(vectors.add(spectrum.vector(spectrum.start), start, -1.0)) < 1e-5
