"""The influence function against dense solves, and against leaving samples out of ridge regression."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import diffin
from cases import Dense, make
from diffin.batches import select
from diffin.errors import DerivativeError, DiffinError
from diffin.estimators.inverse_hessian import conjugate_gradients
from diffin.task import PerSampleLoss, Task, frozen
from diffin.tasks import Regression
from repeatable import adam, two_groups
from retrained import MakeOptimizer, Training, mlp, sgd
from training import record

Scored = tuple[Task, diffin.Trajectory, TensorDataset, TensorDataset]


def score(of: Scored, **settings: Any) -> diffin.Scores:
    task, trajectory, train, query = of
    estimator = diffin.InverseHessian(**settings)
    return diffin.score(
        task, trajectory, train, query=query, estimator=estimator, derivatives="forward", progress=False
    )


def wanted(of: Scored, damping: float, decay: Any = 0.0, *, at: Any = None, drawn: Any = None) -> np.ndarray:
    """``-(1 / N) g_V' (H + decay + damping)^-1 g_z``, with everything dense.

    ``decay`` is by parameter name, or one for all; H is at the final state and of all samples, unless others are given.
    """
    task, trajectory, train, query = of
    with frozen(task.model):
        loss = PerSampleLoss(task, (at or trajectory.final).state)
        dense = Dense(loss)
        of_name = decay if isinstance(decay, dict) else dict.fromkeys(loss.names, decay)
        added = dense.flatten({n: torch.full_like(t, of_name[n]) for n, t in loss.parameters.items()})
        curved = train.tensors if drawn is None else select(train.tensors, torch.from_numpy(drawn))
        matrix = dense.hessian(curved) + torch.diag(added + damping)
        solved = torch.linalg.solve(matrix, dense.gradient(query.tensors))
        gradients = [dense.gradient(dense.sample(train.tensors, z)) for z in range(len(train))]
    return -(torch.stack(gradients) @ solved).numpy() / len(train)


@pytest.fixture
def trained(tmp_path: Path) -> Scored:
    training = Training(mlp, sgd())
    return *training.recorded(tmp_path / "run"), training.train, training.query


@pytest.mark.parametrize("hessian", ["exact", "difference"])
def test_conjugate_gradients_are_the_dense_solve(hessian: str, trained: Scored) -> None:
    """The damping makes H positive definite, which at the end of a short training it is not."""
    found = score(trained, damping=0.5, tolerance=1e-10, hessian=hessian).influence
    # Differences of gradients err by (machine epsilon)^(2/3).
    np.testing.assert_allclose(found, wanted(trained, 0.5), rtol=1e-6, atol=1e-8)


def test_lissa_comes_to_the_dense_solve(trained: Scored) -> None:
    """With all samples in every batch nothing is random, and (1 - damping / scale) ** iterations is small."""
    found = score(trained, solver="lissa", damping=0.5, iterations=200, samples=24).influence
    np.testing.assert_allclose(found, wanted(trained, 0.5), rtol=1e-5, atol=1e-9)


def test_lissa_of_batches_comes_near(trained: Scored) -> None:
    exact = wanted(trained, 0.5)
    found = score(trained, solver="lissa", damping=0.5, iterations=150, samples=12).influence
    assert np.linalg.norm(found - exact) < 0.15 * np.linalg.norm(exact)
    again = score(trained, solver="lissa", damping=0.5, iterations=150, samples=12).influence
    np.testing.assert_array_equal(found, again)
    other = score(trained, solver="lissa", damping=0.5, iterations=150, samples=12, seed=1).influence
    assert (found != other).any()


def test_a_curvature_set_is_a_part_of_the_training_set(trained: Scored) -> None:
    drawn = np.sort(np.random.default_rng((4,)).choice(24, 12, replace=False))
    found = score(trained, damping=0.5, tolerance=1e-10, samples=12, seed=4).influence
    np.testing.assert_allclose(found, wanted(trained, 0.5, drawn=drawn), rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize(
    ("optimizer", "decay"),
    [
        (sgd(weight_decay=0.3), 0.3),
        (adam(weight_decay=0.3), 0.3),
        (adam(torch.optim.AdamW, weight_decay=0.3), 0.0),  # beside the gradient: the minimum is not that of a penalty
        (
            two_groups(torch.optim.SGD, {"weight_decay": 0.5}, {}, lr=0.1),
            {"0.weight": 0.5, "0.bias": 0.5, "2.weight": 0.0, "2.bias": 0.0},
        ),
    ],
    ids=["sgd", "adam", "adamw", "groups"],
)
def test_weight_decay_through_the_gradient_is_a_part_of_the_curvature(
    optimizer: MakeOptimizer, decay: Any, tmp_path: Path
) -> None:
    training = Training(mlp, optimizer)
    of = *training.recorded(tmp_path / "run"), training.train, training.query
    np.testing.assert_allclose(
        score(of, damping=0.4, tolerance=1e-10).influence, wanted(of, 0.4, decay), rtol=1e-6, atol=1e-10
    )


def ridge(inputs: Tensor, targets: Tensor, penalty: float, weights: Tensor) -> Tensor:
    """The minimum of ``sum of w_z (x_z theta - y_z)^2 / N + penalty |theta|^2 / 2``, in closed form."""
    weighted = 2 * inputs.T * weights / len(inputs)
    return torch.linalg.solve(weighted @ inputs + penalty * torch.eye(inputs.shape[1]).double(), weighted @ targets)


@pytest.fixture
def ridged(tmp_path: Path) -> tuple[Scored, Any]:
    """Ridge regression, trained to its minimum, and what the query loses with other weights of the samples."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    noise = torch.randn(40, generator=generator, dtype=torch.float64)
    targets = inputs @ torch.tensor([1.0, -2.0, 0.5]).double() + 0.3 * noise
    x, y, others, theirs = inputs[:30], targets[:30], inputs[30:], targets[30:]
    task = Regression(nn.Linear(3, 1, bias=False).double())
    optimizer = torch.optim.SGD(task.model.parameters(), lr=0.2, weight_decay=0.1)
    recorder = diffin.Recorder(
        tmp_path / "run", task.model, optimizer, dataset_size=30, total_steps=300, checkpoints=[0]
    )
    with recorder:
        for _ in range(300):
            optimizer.zero_grad()
            task.losses((x, y)).mean().backward()
            optimizer.step()
            recorder.step(torch.arange(30))

    def loss(weights: Tensor) -> float:
        return float((others @ ridge(x, y, 0.1, weights) - theirs).square().mean())

    of = task, diffin.Trajectory.open(tmp_path / "run"), TensorDataset(x, y), TensorDataset(others, theirs)
    torch.testing.assert_close(task.model.weight.detach()[0], ridge(x, y, 0.1, torch.ones(30).double()))
    return of, loss


def test_of_ridge_regression_it_is_the_derivative_with_respect_to_the_weight(ridged: Any) -> None:
    of, loss = ridged
    for found in (
        score(of, damping=0.0, tolerance=1e-12).influence,
        score(of, solver="lissa", damping=0.0, iterations=400, samples=30).influence,
    ):
        for z in range(30):
            step = torch.zeros(30).double().index_fill(0, torch.tensor([z]), 1e-4)
            slope = (loss(1 + step) - loss(1 - step)) / 2e-4
            assert found[z] == pytest.approx(slope, rel=1e-6, abs=1e-9)


def test_of_ridge_regression_it_is_leaving_a_sample_out_to_first_order(ridged: Any) -> None:
    """The sign too: the loss with the sample minus that without. A finite step differs by its leverage, about 1/N."""
    of, loss = ridged
    found = score(of, damping=0.0, tolerance=1e-12).influence
    left_out = [
        loss(torch.ones(30).double()) - loss(torch.ones(30).double().index_fill(0, torch.tensor([z]), 0.0))
        for z in range(30)
    ]
    assert np.linalg.norm(found - left_out) < 0.3 * np.linalg.norm(left_out)
    assert np.corrcoef(found, left_out)[0, 1] > 0.98


def test_it_is_taken_at_the_last_state_there_is(trained: Scored, tmp_path: Path) -> None:
    task, trajectory, train, query = trained
    torch.save(trajectory.stored[1].state, tmp_path / "last.pt")
    foreign = diffin.Trajectory.from_checkpoints([tmp_path / "last.pt"], [8], [0.1], dataset_size=24)
    of = task, foreign, train, query
    scores = score(of, damping=0.5, tolerance=1e-10)
    assert scores.steps == (8,)
    assert score(trained, damping=0.5).steps == (20,)
    np.testing.assert_allclose(scores.influence, wanted(of, 0.5, at=foreign.checkpoints[-1]), rtol=1e-6, atol=1e-10)
    assert np.isnan(scores.standard_error).all()


def test_a_hessian_that_is_not_positive_definite_is_warned_of(tmp_path: Path, caplog: Any) -> None:
    case = make("mlp")
    train, query = TensorDataset(*case.batch), TensorDataset(*case.query)
    of = case.task, record(tmp_path / "run", case.task, train, steps=2), train, query
    with frozen(case.task.model):
        lowest = float(torch.linalg.eigvalsh(Dense(PerSampleLoss(case.task)).hessian(case.batch))[0])
    assert lowest < -0.01
    with caplog.at_level("WARNING"):
        found = score(of, damping=0.0)
    assert "not positive definite" in caplog.text
    assert np.isfinite(found.influence).all()
    caplog.clear()
    with caplog.at_level("WARNING"):
        score(of, damping=1.0)
    assert "positive definite" not in caplog.text


def test_conjugate_gradients_that_have_not_arrived_are_warned_of(trained: Scored, caplog: Any) -> None:
    with caplog.at_level("WARNING"):
        score(trained, damping=0.5, iterations=2, tolerance=1e-8)
    assert "relative residual" in caplog.text
    assert "after 2 products" in caplog.text


def test_conjugate_gradients_need_as_many_products_as_there_are_eigenvalues() -> None:
    counted = []

    def product(vector: dict[str, Tensor]) -> dict[str, Tensor]:
        counted.append(1)
        return {"a": vector["a"] * torch.tensor([1.0, 3.0, 3.0, 7.0]).double()}

    solution = conjugate_gradients(product, {"a": torch.arange(1.0, 5.0).double()}, 100, 1e-10)
    torch.testing.assert_close(solution["a"], torch.tensor([1.0, 2 / 3, 1.0, 4 / 7]).double())
    assert len(counted) == 3
    nothing = conjugate_gradients(product, {"a": torch.zeros(4).double()}, 100, 1e-10)
    assert not nothing["a"].any()
    assert len(counted) == 3


def test_a_lissa_that_diverges_is_refused(tmp_path: Path) -> None:
    """Where the Hessian has negative eigenvalues the recursion grows, long before its numbers overflow."""
    case = make("mlp")
    train, query = TensorDataset(*case.batch), TensorDataset(*case.query)
    of = case.task, record(tmp_path / "run", case.task, train, steps=2), train, query
    with pytest.raises(DerivativeError, match=r"diverged after \d+ products; pass a larger damping than 0.01"):
        score(of, solver="lissa", damping=0.01, iterations=300, samples=6)


@pytest.mark.parametrize(
    "settings", [{"solver": "gmres"}, {"damping": -1.0}, {"iterations": 0}, {"samples": 0}, {"seed": -1}], ids=str
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(DiffinError, match="InverseHessian"):
        diffin.InverseHessian(**settings)
