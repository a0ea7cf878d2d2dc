"""Eq. 9 against the procedure of its authors, one sample at a time, and against dense matrices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

import diffin
from cases import Dense, make
from diffin.task import PerSampleLoss, Task, frozen
from diffin.trajectory import Trajectory
from training import record

MODELS = ["mlp", "cnn with batch norm", "transformer"]
N = 12


def procedure(task: Task, trajectory: Trajectory, train: Any, query: Any, proxy: list[Any]) -> np.ndarray:
    """What the authors describe: for every sample, at every checkpoint, gradients anew and one-sided differences."""
    scores = np.zeros(len(train[1]))
    for z in range(len(scores)):
        for checkpoint, batch in zip(trajectory.checkpoints, proxy, strict=True):
            with frozen(task.model):
                loss = PerSampleLoss(task, checkpoint.state)
                dense = Dense(loss)

                def gradient(at: Tensor, samples: Any, dense: Dense = dense) -> Tensor:
                    at = at.clone().requires_grad_()
                    return torch.autograd.grad(dense.mean_loss(samples)(at), at)[0]

                def product(samples: Any, v: Tensor, dense: Dense = dense, gradient: Any = gradient) -> Tensor:
                    step = 1e-6 / float(v.norm())
                    return (gradient(dense.theta + step * v, samples) - gradient(dense.theta, samples)) / step

                sample = tuple(column[z : z + 1] for column in train)
                g_z, g_batch, g_query = (gradient(dense.theta, part) for part in (sample, batch, query))
                bracket = product(batch, g_z) + product(sample, g_batch)
            weight = -checkpoint.step * checkpoint.learning_rate**2 / (len(scores) * len(trajectory.checkpoints))
            scores[z] += weight * float(g_query @ bracket)
    return scores


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-4), (torch.float32, 1e-2)], ids=["float64", "float32"]
)
@pytest.mark.parametrize("derivatives", ["difference", "forward", "ghost"])
@pytest.mark.parametrize("name", MODELS)
def test_the_procedure_of_the_authors_gives_the_same_scores(
    name: str, derivatives: str, dtype: torch.dtype, tolerance: float, tmp_path: Path
) -> None:
    case = make(name)
    train = tuple(torch.cat([a, b]) for a, b in zip(case.batch, make(name, seed=1).batch, strict=True))
    trajectory = record(tmp_path / "run", case.task, TensorDataset(*train))
    proxies = []
    for checkpoint in trajectory.checkpoints:
        drawn = np.sort(np.random.default_rng((3, checkpoint.step, 0)).choice(N, 5, replace=False))
        proxies.append(tuple(column[drawn] for column in train))
    wanted = procedure(case.task, trajectory, train, case.query, proxies)

    cast = case.to(dtype)
    columns = tuple(column.to(dtype) if column.is_floating_point() else column for column in train)
    scores = diffin.score(
        cast.task,
        trajectory,
        TensorDataset(*columns),
        query=TensorDataset(*cast.query),
        estimator=diffin.DiffIn(batch_size=5, seed=3),
        derivatives=derivatives,  # type: ignore[arg-type]
        progress=False,
    )
    error = np.linalg.norm(scores.influence - wanted) / np.linalg.norm(wanted)
    assert error < tolerance


@pytest.mark.parametrize("hessian", ["exact", "difference"])
def test_diffin_is_equation_nine_in_dense_matrices(hessian: str, tmp_path: Path) -> None:
    case = make("cnn with batch norm")
    trajectory = record(tmp_path / "run", case.task, TensorDataset(*case.batch))
    scores = diffin.score(
        case.task,
        trajectory,
        TensorDataset(*case.batch),
        query=TensorDataset(*case.query),
        estimator=diffin.DiffIn(batch_size=None, hessian=hessian),  # type: ignore[arg-type]
        derivatives="forward",
        progress=False,
    )
    size, count = len(case.batch[1]), len(trajectory.checkpoints)
    for column, checkpoint in enumerate(trajectory.checkpoints):
        with frozen(case.task.model):
            dense = Dense(PerSampleLoss(case.task, checkpoint.state))
            g_query, g_batch, h_batch = (
                dense.gradient(case.query),
                dense.gradient(case.batch),
                dense.hessian(case.batch),
            )
            for z in range(size):
                one = dense.sample(case.batch, z)
                bracket = h_batch @ dense.gradient(one) + dense.hessian(one) @ g_batch
                weight = -checkpoint.step * checkpoint.learning_rate**2 / (size * count)
                assert scores.terms[z, column] == pytest.approx(weight * float(g_query @ bracket), rel=1e-4, abs=1e-15)
    np.testing.assert_allclose(scores.influence, scores.terms.sum(axis=1))


def test_groups_with_rates_of_their_own_scale_their_parameters(tmp_path: Path) -> None:
    case = make("mlp")
    model = case.task.model
    groups = [{"params": list(model[0].parameters()), "lr": 0.05}, {"params": list(model[2].parameters()), "lr": 0.2}]  # type: ignore[index]
    trajectory = record(
        tmp_path / "run", case.task, TensorDataset(*case.batch), optimizer=torch.optim.SGD(groups, lr=0.1)
    )
    scores = diffin.score(
        case.task,
        trajectory,
        TensorDataset(*case.batch),
        query=TensorDataset(*case.query),
        estimator=diffin.DiffIn(batch_size=None),
        derivatives="forward",
        progress=False,
    )
    checkpoint = trajectory.checkpoints[1]
    with frozen(model):
        loss = PerSampleLoss(case.task, checkpoint.state)
        dense = Dense(loss)
        rates = checkpoint.learning_rates(loss.names)
        assert len(set(rates.values())) == 2
        e = dense.flatten({name: torch.full_like(t, rates[name]) for name, t in loss.parameters.items()})
        g_query, g_batch, h_batch = dense.gradient(case.query), dense.gradient(case.batch), dense.hessian(case.batch)
        for z in range(len(case.batch[1])):
            one = dense.sample(case.batch, z)
            bracket = h_batch @ (e * dense.gradient(one)) + dense.hessian(one) @ (e * g_batch)
            wanted = -checkpoint.step / (len(case.batch[1]) * 3) * float((e * g_query) @ bracket)
            assert scores.terms[z, 1] == pytest.approx(wanted, rel=1e-8)


def test_tracin_and_moso_are_gradient_products(tmp_path: Path) -> None:
    case = make("mlp")
    trajectory = record(tmp_path / "run", case.task, TensorDataset(*case.batch))
    train, query = TensorDataset(*case.batch), TensorDataset(*case.query)
    tracin = diffin.score(
        case.task, trajectory, train, query=query, estimator=diffin.TracIn(), derivatives="forward", progress=False
    )
    moso = diffin.score(
        case.task, trajectory, train, estimator=diffin.MoSo(samples=None), derivatives="forward", progress=False
    )
    size, count = len(train), len(trajectory.checkpoints)
    for column, checkpoint in enumerate(trajectory.checkpoints):
        with frozen(case.task.model):
            dense = Dense(PerSampleLoss(case.task, checkpoint.state))
            scale = -trajectory.total_steps * checkpoint.learning_rate / (size * count)
            for z in range(size):
                g_z = dense.gradient(dense.sample(case.batch, z))
                assert tracin.terms[z, column] == pytest.approx(scale * float(dense.gradient(case.query) @ g_z))
                assert moso.terms[z, column] == pytest.approx(scale * float(dense.gradient(case.batch) @ g_z))


def test_a_step_on_a_sample_like_the_query_helps(tmp_path: Path) -> None:
    """The sign: training on the query itself lowers its loss."""
    case = make("regression")
    trajectory = record(tmp_path / "run", case.task, TensorDataset(*case.batch), steps=4, checkpoints=[1])
    one = TensorDataset(*(column[:1] for column in case.batch))
    scores = diffin.score(case.task, trajectory, one, query=one, estimator=diffin.TracIn(), progress=False)
    assert scores.influence[0] < 0


def test_more_proxy_batches_average_the_noise_of_one(tmp_path: Path) -> None:
    case = make("mlp")
    train = TensorDataset(*(torch.cat([make("mlp", seed=s).batch[i] for s in range(20)]) for i in range(2)))
    trajectory = record(tmp_path / "run", case.task, train)

    def influence(**settings: Any) -> np.ndarray:
        estimator = diffin.DiffIn(**settings)
        return diffin.score(
            case.task,
            trajectory,
            train,
            query=TensorDataset(*case.query),
            estimator=estimator,
            derivatives="forward",
            progress=False,
        ).influence

    exact = influence(batch_size=None)
    one, many = (np.linalg.norm(influence(batch_size=10, batches=count) - exact) for count in (1, 16))
    assert many < one / 2
