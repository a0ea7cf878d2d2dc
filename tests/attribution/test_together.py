"""The space that all queries share, against dense matrices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pairs_of import pairs
from torch import Tensor
from torch.utils.data import TensorDataset

import diffin
from cases import Dense
from diffin import stacks
from diffin.derivatives.krylov import krylov
from diffin.estimators import together
from diffin.estimators.together import leading
from diffin.task import PerSampleLoss, frozen
from retrained import Training, mlp, sgd

SHAPES = {"a": (3, 4), "b": (5,)}
SIZE = 17


def stack_of(rows: Tensor) -> dict[str, Tensor]:
    """Rows of a matrix as vectors of two parameters."""
    a, b = rows.split([12, 5], dim=1)
    return {"a": a.reshape(-1, 3, 4), "b": b.clone()}


def flat(stack: dict[str, Tensor]) -> Tensor:
    return torch.cat([t.flatten(1) for t in stack.values()], dim=1)


@pytest.fixture
def matrix() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    half = torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64)
    return half + half.T


def product(matrix: Tensor, count: list[int]):
    def multiply(vector: dict[str, Tensor]) -> dict[str, Tensor]:
        count[0] += 1
        return stacks.at(stack_of(flat({name: t.unsqueeze(0) for name, t in vector.items()}) @ matrix), 0)

    return multiply


@pytest.mark.parametrize(("starts", "rank"), [(1, 6), (3, 9), (4, 4), (3, 40)])
def test_a_krylov_space_is_what_powers_of_the_matrix_span(matrix: Tensor, starts: int, rank: int) -> None:
    count = [0]
    rows = torch.randn(starts, SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    space = krylov(product(matrix, count), stack_of(rows), rank)
    dimensions = min(rank, SIZE)
    assert count[0] == len(space.values) == dimensions
    basis = flat(space.basis)
    torch.testing.assert_close(basis @ basis.T, torch.eye(dimensions, dtype=torch.float64))
    powers = torch.cat([rows @ torch.linalg.matrix_power(matrix / 10, k) for k in range(-(-dimensions // starts))])
    span = torch.linalg.qr(powers[:dimensions].T)[0]
    torch.testing.assert_close(basis.T @ basis, span @ span.T, rtol=0, atol=1e-8)
    ritz = flat(stacks.combined(space.rotation.T, space.basis))
    torch.testing.assert_close(ritz @ matrix @ ritz.T, torch.diag(torch.from_numpy(space.values)), rtol=0, atol=1e-8)
    np.testing.assert_allclose(space.coordinates(stack_of(rows)), (ritz @ rows.T).numpy(), rtol=0, atol=1e-12)


def test_the_leading_combinations_hold_most_of_the_normalised_vectors() -> None:
    rows = torch.randn(6, SIZE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    rows = rows * torch.tensor([1.0, 1e-8, 1e6, 1.0, 1.0, 0.0])[:, None]
    found = leading(stack_of(rows), 3)
    assert found is not None
    unit = rows[:5] / rows[:5].norm(dim=1, keepdim=True)
    wanted = torch.linalg.svd(unit, full_matrices=False)[2][:3]
    torch.testing.assert_close(flat(found).T @ flat(found), wanted.T @ wanted, rtol=0, atol=1e-8)
    assert leading(stack_of(rows[5:]), 3) is None


def test_what_the_space_does_not_hold_is_carried_as_if_the_loss_were_flat(tmp_path: Path, monkeypatch) -> None:
    """Plain SGD from one checkpoint: everything the adjoints go through, in matrices."""
    monkeypatch.setattr(together, "_SHARED", 2)
    training = Training(mlp, sgd(), checkpoints=[0])
    task, trajectory = training.recorded(tmp_path / "run")
    query = TensorDataset(*(t[:5] for t in training.query.tensors))
    with frozen(task.model):
        assert trajectory.final is not None
        last = Dense(PerSampleLoss(task, trajectory.final.state))
        ahead = torch.stack([last.gradient(last.sample(query.tensors, q)) for q in range(5)], dim=1)
        first = Dense(PerSampleLoss(task, trajectory.checkpoints[0].state))
        hessian = first.hessian(training.train.tensors)
        # Rank 4 for two queries: eight dimensions, grown from two combinations.
        left = torch.linalg.svd(ahead / ahead.norm(dim=0))[0][:, :2]
        powers = torch.cat([torch.linalg.matrix_power(hessian, k) @ left for k in range(4)], dim=1)
        basis = torch.linalg.qr(powers)[0]
        values, rotation = torch.linalg.eigh(basis.T @ hessian @ basis)
        ritz = basis @ rotation
        curvature = ritz @ torch.diag(values.clamp(0, 1 / 0.2)) @ ritz.T
        direction = torch.zeros_like(ahead)
        for _ in range(training.steps):
            direction -= 0.2 * ahead
            ahead = ahead - 0.2 * curvature @ ahead
        gradients = torch.stack([first.gradient(first.sample(training.train.tensors, z)) for z in range(training.size)])
    wanted = (gradients @ direction).numpy() / training.size
    estimator = diffin.Unrolled(propagation="segments", rank=4, curvature_samples=None, hessian="exact")
    found = pairs((task, trajectory, training.train, query), estimator)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-8 * np.abs(wanted).max())
