"""Unrolled against recursions of dense matrices, and against Replay where they must agree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dense_segments import DenseSegments, Scored
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW
from torch.utils.data import Dataset, TensorDataset

import diffin
from diffin.errors import DiffinError, TrajectoryError
from diffin.estimators import stepwise, unrolled
from diffin.estimators.segments import nearest
from diffin.rerun import Part, Rerun
from diffin.sources import open_source
from diffin.tasks import Classification, Regression
from repeatable import Tied, adam, decaying, full_batch, set_of, two_groups
from retrained import MakeOptimizer, PartlyUnused, Training, cnn, sgd
from retrained import mlp as wide

FULL = diffin.Unrolled(propagation="segments", rank=500, curvature_samples=None, hessian="exact")


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))


def score(of: Scored, estimator: Any, **options: Any) -> diffin.Scores:
    task, trajectory, train, query = of
    settings = {"query": query, "estimator": estimator, "derivatives": "forward", "progress": False, **options}
    return diffin.score(task, trajectory, train, **settings)


def scored(training: Training, path: Path) -> Scored:
    return *training.recorded(path), training.train, training.query


def rates_that_fall(optimizer: torch.optim.Optimizer, step: int) -> None:
    for number, group in enumerate(optimizer.param_groups):
        group["lr"] = 0.3 * (number + 1) * 0.9**step


SEGMENTED: dict[str, Callable[[], Training]] = {
    "sgd": lambda: Training(mlp, sgd(), schedule=rates_that_fall),
    "momentum": lambda: Training(mlp, sgd(momentum=0.9)),
    "dampening": lambda: Training(mlp, sgd(momentum=0.8, dampening=0.4, lr=0.4)),
    "nesterov": lambda: Training(mlp, sgd(momentum=0.9, nesterov=True)),
    "coupled decay": lambda: Training(mlp, sgd(momentum=0.5, weight_decay=0.1)),
    "clipped": lambda: Training(mlp, sgd(momentum=0.9), clip=0.2),
    "clipped with decay": lambda: Training(mlp, sgd(momentum=0.9, weight_decay=0.2), clip=0.2),
    "two groups": lambda: Training(
        mlp, two_groups(SGD, {"lr": 0.3, "weight_decay": 0.02}, {"lr": 0.05, "weight_decay": 0.2}, momentum=0.7)
    ),
    "so fast that the guard has to cut": lambda: Training(mlp, sgd(momentum=0.5, lr=6.0), clip=1.0),
    "adam": lambda: Training(mlp, adam()),
    "adam with decay": lambda: Training(mlp, adam(weight_decay=0.1, eps=1e-3), clip=0.2),
    "adamw": lambda: Training(mlp, adam(AdamW, weight_decay=0.4)),
    "amsgrad": lambda: Training(mlp, adam(amsgrad=True, betas=(0.8, 0.6))),
    "two groups of adamw": lambda: Training(
        mlp, two_groups(AdamW, {"lr": 0.03, "weight_decay": 0.5}, {"lr": 0.01, "weight_decay": 0.1, "eps": 1e-4})
    ),
    "unused parameters": lambda: Training(PartlyUnused, sgd(momentum=0.9, weight_decay=0.1)),
    "unused parameters of adamw": lambda: Training(PartlyUnused, adam(AdamW)),
    "tied": lambda: Training(Tied, sgd(momentum=0.5, lr=0.05)),
}


@pytest.mark.parametrize("name", SEGMENTED)
def test_segments_are_the_recursion_in_dense_matrices(name: str, tmp_path: Path) -> None:
    training = SEGMENTED[name]()
    training.checkpoints = [0, 5, 12]
    of = scored(training, tmp_path / "run")
    found, wanted = score(of, FULL).terms, DenseSegments(of).terms()
    # Lanczos breaks off where what is left of the curvature is a millionth of it.
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6 * np.abs(wanted).max())


@pytest.mark.parametrize("name", SEGMENTED)
def test_segments_by_differences_are_those_by_products(name: str, tmp_path: Path) -> None:
    of = scored(SEGMENTED[name](), tmp_path / "run")
    estimator = replace(FULL, rank=6)
    found, wanted = score(of, replace(estimator, hessian="difference")).terms, score(of, estimator).terms
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())


def test_skipped_steps_are_left_out_and_not_counted(tmp_path: Path) -> None:
    """As a gradient scaler skips them; Adam's bias correction then runs behind the number of the step."""
    training = Training(mlp, adam(betas=(0.9, 0.95)))
    model = training.model()
    optimizer, scaler = training.make_optimizer(model), torch.amp.GradScaler("cpu", init_scale=4.0)
    inputs, targets = training.train.tensors
    settings = {"dataset_size": 24, "total_steps": 12, "checkpoints": [0, 7], "grad_scaler": scaler}
    with diffin.Recorder(tmp_path / "run", model, optimizer, **settings) as recorder:
        for step in range(12):
            batch = training.batches[step]
            loss = nn.functional.cross_entropy(model(inputs[batch]), targets[batch])
            scaler.scale(loss * (torch.inf if step in (0, 3, 9) else 1)).backward()
            scaler.step(optimizer)
            scaler.update()
            recorder.step(batch)
            optimizer.zero_grad()
    of = Classification(training.model()), diffin.Trajectory.open(tmp_path / "run"), training.train, training.query
    assert of[1].steps is not None
    assert np.flatnonzero(of[1].steps.skipped).tolist() == [0, 3, 9]
    found, wanted = score(of, FULL).terms, DenseSegments(of).terms()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6 * np.abs(wanted).max())


def test_foreign_checkpoints_are_unrolled_as_plain_sgd(tmp_path: Path) -> None:
    training = Training(mlp, sgd(momentum=0.9))
    task, recorded, train, query = scored(training, tmp_path / "run")
    paths = []
    for checkpoint in recorded.stored:
        paths.append(tmp_path / f"{checkpoint.step}.pt")
        torch.save(checkpoint.state, paths[-1])
    foreign = diffin.Trajectory.from_checkpoints(paths, [2, 9, 20], [0.3, 0.2, 0.1], dataset_size=24)
    of = task, foreign, train, query
    assert diffin.Unrolled().resolved(task, foreign, open_source(train)).propagation == "segments"
    found, wanted = score(of, FULL).terms, DenseSegments(of).terms()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6 * np.abs(wanted).max())


@pytest.mark.parametrize("patterns", ["0.*", ["*.bias", "2.weight"]], ids=str)
def test_a_subset_of_the_parameters_is_studied_with_its_own_curvature(patterns: Any, tmp_path: Path) -> None:
    of = scored(Training(mlp, sgd(momentum=0.9)), tmp_path / "run")
    found, wanted = score(of, FULL, parameters=patterns).terms, DenseSegments(of, patterns).terms()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6 * np.abs(wanted).max())


@pytest.mark.parametrize("total", [1, 2, 7, 20])
@pytest.mark.parametrize("steps", [[0], [0, 1], [3, 8, 9], [5, 6, 19]], ids=str)
def test_every_step_belongs_to_the_nearest_state(steps: list[int], total: int) -> None:
    steps = [step for step in steps if step < total] or [0]
    ranges = nearest(steps, total)
    owners = [step for step, (start, stop) in zip(steps, ranges, strict=True) for _ in range(start, stop)]
    assert owners == [min(steps, key=lambda s: (abs(s - t), -s)) for t in range(total)]
    assert all(start <= step < stop for step, (start, stop) in zip(steps, ranges, strict=True))


def test_no_rank_is_too_high_and_a_lower_one_comes_close(tmp_path: Path) -> None:
    of = scored(Training(mlp, sgd(), checkpoints=[0, 5, 12]), tmp_path / "run")
    exact = score(of, FULL).influence
    errors = [
        np.linalg.norm(score(of, replace(FULL, rank=rank)).influence - exact) / np.linalg.norm(exact)
        for rank in (1, 12)
    ]
    assert errors[1] < 0.01 < errors[0]


def test_what_was_maximized_is_refused_by_segments_and_followed_by_steps(tmp_path: Path) -> None:
    of = scored(Training(mlp, sgd(maximize=True, lr=0.01)), tmp_path / "run")
    with pytest.raises(TrajectoryError, match=r"maximized.*propagation='steps'"):
        score(of, FULL)
    assert np.isfinite(score(of, diffin.Unrolled()).influence).all()


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.8},
        {"momentum": 0.8, "dampening": 0.3},
        {"momentum": 0.8, "nesterov": True},
        {"weight_decay": 0.3},
    ],
    ids=str,
)
def test_on_a_quadratic_with_full_batches_segments_of_a_step_are_exact(options: dict[str, Any], tmp_path: Path) -> None:
    """The curvature is the same everywhere, and every sample is in every batch with the weight 1 / N."""
    inputs = torch.randn(16, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets = torch.sin(3 * inputs[:, :2])
    train, query = TensorDataset(inputs[:12], targets[:12]), TensorDataset(inputs[12:], targets[12:])
    torch.manual_seed(0)
    task = Regression(Line().double())
    optimizer = torch.optim.SGD(task.model.parameters(), lr=0.05, **options)
    recorder = diffin.Recorder(
        tmp_path / "run", task.model, optimizer, dataset_size=12, total_steps=15, checkpoints=range(15)
    )
    with recorder:
        for step in range(15):
            optimizer.param_groups[0]["lr"] = 0.05 * 0.95**step
            optimizer.zero_grad()
            task.losses(train.tensors).mean().backward()
            optimizer.step()
            recorder.step(torch.arange(12))
    of = task, diffin.Trajectory.open(tmp_path / "run"), train, query
    replay = score(of, diffin.Replay()).influence
    for estimator in (FULL, diffin.Unrolled(propagation="steps", states=1000, hessian="exact")):
        np.testing.assert_allclose(score(of, estimator).influence, replay, rtol=0, atol=1e-9 * np.abs(replay).max())


STEPPED: dict[str, MakeOptimizer] = {
    "sgd": sgd(),
    "momentum": sgd(momentum=0.9, weight_decay=0.1),
    "nesterov": sgd(momentum=0.9, nesterov=True),
    "adamw": adam(AdamW),
    "groups": two_groups(Adam, {"lr": 0.02}, {"lr": 0.01, "weight_decay": 0.1}),
}


PRODUCTS = {"exact": 1e-9, "difference": 1e-6}
"""Ways to take a product with the Hessian, and how near that comes to the truth in float64."""


@pytest.mark.parametrize("hessian", PRODUCTS)
@pytest.mark.parametrize("name", STEPPED)
@pytest.mark.parametrize("clip", [None, 0.1], ids=["plain", "clipped"])
def test_with_full_batches_and_all_states_steps_are_replay(
    name: str, clip: float | None, hessian: Any, tmp_path: Path
) -> None:
    training = full_batch(Training(mlp, STEPPED[name], clip=clip, micro_batches=1 if clip else 3))
    of = scored(training, tmp_path / "run")
    found = score(of, diffin.Unrolled(propagation="steps", states=2 * 20, hessian=hessian))
    replay = score(of, diffin.Replay()).influence
    assert found.steps == tuple(range(20))
    np.testing.assert_allclose(found.influence, replay, rtol=0, atol=PRODUCTS[hessian] * np.abs(replay).max())


def test_parameters_that_are_added_up_are_not_counted_twice(tmp_path: Path) -> None:
    """They have one gradient between them; with all samples in every batch, Replay says what is right."""
    of = scored(full_batch(Training(Tied, sgd(momentum=0.9, lr=0.1))), tmp_path / "run")
    found = score(of, diffin.Unrolled(propagation="steps", states=40, hessian="exact")).influence
    replay = score(of, diffin.Replay()).influence
    np.testing.assert_allclose(found, replay, rtol=0, atol=1e-9 * np.abs(replay).max())


@pytest.mark.parametrize("total", [1, 2, 10, 1000])
@pytest.mark.parametrize("count", [1, 3, 10, 4000])
def test_states_lie_denser_early_and_are_all_there_are_at_most(count: int, total: int) -> None:
    chosen = stepwise.states(count, total)
    assert list(chosen) == sorted({int(total * ((j + 0.5) / count) ** 2 + 1e-9) for j in range(count)})
    assert chosen == tuple(range(total)) if count >= 2 * total else len(chosen) <= count
    assert 0 <= chosen[0] <= chosen[-1] < total


def test_steps_say_what_replays_of_many_orders_say_in_the_mean(tmp_path: Path) -> None:
    """Batches of 6 of 24 samples, drawn anew at each of 12 small steps.

    A sample is in a batch with probability 1/4, so that its influence by one order has a relative deviation of about
    sqrt((3/4) / (1/4) / 12) = 0.5, and the mean of 24 of them 0.1. `Unrolled` knows one order, and only by the states
    that it went through; what it errs by that is far less at this rate.
    """
    training = Training(wide, sgd(lr=0.02), steps=12)
    generator = torch.Generator().manual_seed(5)
    training.batches = [torch.randperm(24, generator=generator)[:6] for _ in range(12)]
    of = scored(training, tmp_path / "run")
    task, trajectory, train, query = of
    replays = []
    for seed in range(24):
        drawn = [np.random.default_rng((seed, t)).choice(24, 6, replace=False) for t in range(12)]
        rerun = Rerun(task, trajectory, open_source(train), order=lambda t, drawn=drawn: (Part(drawn[t], 1 / 6),))
        replays.append(diffin.Replay().walk(rerun, [set_of(query)], progress=False).influence[0])
    mean = np.mean(replays, axis=0)
    size = np.linalg.norm(mean)
    alone = score(of, diffin.Replay()).influence
    steps = score(of, diffin.Unrolled(propagation="steps", states=24)).influence
    assert np.linalg.norm(alone - mean) / size > 0.3
    assert np.linalg.norm(steps - mean) / size < 0.2
    assert np.mean(steps) == pytest.approx(np.mean(mean), rel=0.1)


class Augmented(Dataset[Any]):
    def __init__(self, data: TensorDataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        x, y = self.data[index]
        return x + torch.randn_like(x), y


def test_auto_takes_steps_where_they_can_be_repeated_and_says_why_not(tmp_path: Path, caplog, monkeypatch) -> None:
    training = Training(mlp, sgd(momentum=0.9))
    task, trajectory, train, _ = scored(training, tmp_path / "run")
    auto = diffin.Unrolled()
    assert auto.resolved(task, trajectory, open_source(train)).propagation == "steps"
    assert (
        replace(auto, propagation="segments").resolved(task, trajectory, open_source(train)).propagation == "segments"
    )
    with caplog.at_level("INFO"):
        assert auto.resolved(task, trajectory, open_source(Augmented(train))).propagation == "segments"
    assert "cannot be repeated" in caplog.text
    adams = scored(Training(mlp, adam(), schedule=decaying), tmp_path / "adam")
    assert auto.resolved(adams[0], adams[1], open_source(train)).propagation == "steps"
    with monkeypatch.context() as patch:
        patch.setattr(unrolled, "_WALKED", 6 * 20 - 1)  # one less than what the training saw
        assert auto.resolved(task, trajectory, open_source(train)).propagation == "segments"
    model = training.model()
    optimizer = training.make_optimizer(model)
    with diffin.Recorder(tmp_path / "without", model, optimizer, dataset_size=24, total_steps=4) as recorder:
        for batch in training.batches[:4]:
            nn.functional.cross_entropy(model(train.tensors[0][batch]), train.tensors[1][batch]).backward()
            optimizer.step()
            recorder.step()
    without = diffin.Trajectory.open(tmp_path / "without")
    assert auto.resolved(task, without, open_source(train)).propagation == "segments"


def bent(cut: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(5, 4), cut, nn.Linear(4, 3))


@pytest.mark.parametrize(
    ("cut", "hessian"),
    [(nn.GELU(), "difference"), (nn.ReLU(), "gauss-newton"), (nn.Hardtanh(), "gauss-newton")],
    ids=str,
)
@pytest.mark.parametrize("propagation", ["auto", "segments"])
def test_auto_takes_differences_of_what_is_smooth_only(
    cut: nn.Module, hessian: str, propagation: Any, tmp_path: Path
) -> None:
    task, trajectory, train, _ = scored(Training(lambda: bent(cut), sgd()), tmp_path / "run")
    resolved = diffin.Unrolled(propagation=propagation).resolved(task, trajectory, open_source(train))
    assert resolved.hessian == hessian


def test_auto_takes_no_differences_in_half_precision(tmp_path: Path) -> None:
    task, trajectory, train, _ = scored(Training(mlp, sgd()), tmp_path / "run")
    task.model.bfloat16()
    chosen = diffin.Unrolled(propagation="segments").resolved(task, trajectory, open_source(train))
    assert chosen.hessian == "exact"


def test_statistics_of_batches_are_differentiated_whole(tmp_path: Path) -> None:
    task, trajectory, train, _ = scored(Training(cnn, sgd(), shape=(1, 6, 6)), tmp_path / "run")
    source = open_source(train)
    assert diffin.Unrolled(propagation="steps").resolved(task, trajectory, source).hessian == "exact"
    with pytest.raises(DiffinError, match="batch normalisation"):
        diffin.Unrolled(propagation="steps", hessian="difference").resolved(task, trajectory, source)


@pytest.mark.parametrize(
    "settings",
    [{"propagation": "both"}, {"states": 0}, {"rank": 0}, {"curvature_samples": 0}, {"seed": -1}, {"hessian": "gauss"}],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused_by_name(settings: dict[str, Any]) -> None:
    with pytest.raises(DiffinError, match=rf"Unrolled\({next(iter(settings))}="):
        diffin.Unrolled(**settings)
