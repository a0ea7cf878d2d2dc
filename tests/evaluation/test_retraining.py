"""Ground truth, against a training loop written out and against closed forms."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from diffin import Recorder, Trajectory
from diffin.errors import DatasetError, EvaluationError, TrajectoryError
from diffin.evaluation import Truth, agreement, expected_influence, leave_groups_out, leave_one_out, subsets
from diffin.rerun.batches import shuffled_order
from diffin.task import Task
from diffin.tasks import Classification, Regression
from retrained import TRAININGS, Training, mlp, sgd

QUIET = {"progress": False}


def expected_effect(training: Training, weights: Tensor) -> np.ndarray:
    """Of each query sample's loss: with all samples, minus with the weights."""
    return (training.query_losses() - training.query_losses(weights)).numpy()


def without(training: Training, samples: object, weight: float = 0.0) -> Tensor:
    weights = torch.ones(training.size, dtype=torch.float64)
    weights[samples] = weight
    return weights


@pytest.fixture
def training() -> Training:
    return TRAININGS["momentum and decay"]()


@pytest.fixture
def asked(training: Training, tmp_path: Path) -> tuple[Task, Trajectory, TensorDataset, TensorDataset]:
    return (*training.recorded(tmp_path / "run"), training.train, training.query)


@pytest.mark.parametrize("name", ["momentum and decay", "batch norm", "dropout", "looking at values"])
@pytest.mark.parametrize("weight", [0.0, 0.9])
def test_leaving_one_out_is_training_without_it(name: str, weight: float, tmp_path: Path) -> None:
    training = TRAININGS[name]()
    found = leave_one_out(
        *training.recorded(tmp_path / "run"), training.train, training.query,
        samples=[5, 2], weight=weight, query_samples=[3, 0], **QUIET,
    )  # fmt: skip
    assert found.per_query is not None
    for column, sample in enumerate((5, 2)):
        effect = expected_effect(training, without(training, sample, weight)) / (1 - weight)
        np.testing.assert_allclose(found.influence[column], effect.mean(), rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(found.per_query[:, column], effect[[3, 0]], rtol=1e-6, atol=1e-9)


def test_leaving_a_group_out_is_training_without_its_members(asked: tuple, training: Training) -> None:
    groups = [[1, 2, 3], [0, 20]]
    found = leave_groups_out(*asked, groups=groups, **QUIET)
    for group, influence in zip(groups, found.influence, strict=True):
        np.testing.assert_allclose(influence, expected_effect(training, without(training, group)).mean(), rtol=1e-6)


@pytest.mark.parametrize(("rescale", "kept"), [(True, 2.0), (False, 1.0)])
def test_a_subset_is_trained_on_alone(asked: tuple, training: Training, rescale: bool, kept: float) -> None:
    found = subsets(*asked, count=3, rescale=rescale, **QUIET)
    for group, influence in zip(found.groups, found.influence, strict=True):
        assert len(group) == 12
        weights = torch.zeros(training.size, dtype=torch.float64)
        weights[torch.from_numpy(group)] = kept
        np.testing.assert_allclose(influence, -expected_effect(training, weights).mean(), rtol=1e-6)


def test_other_orders_are_other_trainings_averaged(asked: tuple, training: Training) -> None:
    found = leave_one_out(*asked, samples=[4], orders=2, seed=5, **QUIET)
    effects = []
    for seed in found.order_seeds:
        order = shuffled_order(asked[1].steps, training.size, seed)
        other = Training(mlp, training.make_optimizer)
        other.batches = [torch.from_numpy(order(step)[0].indices) for step in range(training.steps)]
        effects.append(expected_effect(other, without(other, 4)).mean())
    np.testing.assert_allclose(found.replicas[:, 0], effects, rtol=1e-6)
    np.testing.assert_allclose(found.influence, np.mean(effects), rtol=1e-6)


def test_the_expected_influence_is_the_derivative_of_retraining_in_those_orders(asked: tuple) -> None:
    exact = expected_influence(*asked, orders=2, seed=5, **QUIET)
    difference = leave_one_out(*asked, samples=None, weight=1 - 1e-5, orders=2, seed=5, **QUIET)
    assert exact.order_seeds == difference.order_seeds
    np.testing.assert_allclose(exact.replicas, difference.replicas, rtol=1e-3, atol=1e-8)


@pytest.mark.parametrize("function", [leave_one_out, expected_influence])
def test_processes_change_nothing(asked: tuple, function: object, tmp_path: Path) -> None:
    options = {"orders": 3, "output": tmp_path / "truth", **QUIET}
    alone, together = function(*asked, **{**options, "output": None}), function(*asked, processes=2, **options)
    np.testing.assert_allclose(alone.replicas, together.replicas, rtol=1e-9, atol=1e-12)


def test_a_linear_fit_without_a_sample_is_the_closed_form(tmp_path: Path) -> None:
    # Ridge regression, full batch, trained until nothing moves.
    decay, size = 0.2, 14
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(size + 6, 3, generator=generator, dtype=torch.float64)
    targets = inputs @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64) + torch.randn(
        size + 6, generator=generator, dtype=torch.float64
    )
    model = nn.Linear(3, 1, bias=False).double()
    task = Regression(model)
    train = TensorDataset(inputs[:size], targets[:size])
    query = TensorDataset(inputs[size:], targets[size:])
    initial = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, weight_decay=decay)
    with Recorder(tmp_path / "run", model, optimizer, dataset_size=size, total_steps=300, checkpoints=2) as recorder:
        for _ in range(300):
            optimizer.zero_grad()
            task.losses(train[:]).mean().backward()
            optimizer.step()
            recorder.step(range(size))
    model.load_state_dict(initial)
    found = leave_one_out(task, Trajectory.open(tmp_path / "run"), train, query, samples=None, **QUIET)

    scale = task.losses((inputs[:1], model(inputs[:1]).squeeze(1) + 1)).item()  # of a squared error of one
    x, y, qx, qy = inputs[:size].numpy(), targets[:size].numpy(), inputs[size:].numpy(), targets[size:].numpy()

    def query_loss(kept: np.ndarray) -> float:
        hessian = 2 * scale / size * x[kept].T @ x[kept] + decay * np.eye(3)
        theta = np.linalg.solve(hessian, 2 * scale / size * x[kept].T @ y[kept])
        return float(scale * np.mean((qx @ theta - qy) ** 2))

    everything = np.arange(size)
    expected = [query_loss(everything) - query_loss(np.delete(everything, i)) for i in everything]
    np.testing.assert_allclose(found.influence, expected, rtol=1e-7)


def test_samples_are_drawn_by_the_seed_without_replacement(asked: tuple) -> None:
    first, again, other = (leave_one_out(*asked, samples=10, seed=seed, **QUIET) for seed in (0, 0, 1))
    drawn = np.concatenate(first.groups)
    assert len(np.unique(drawn)) == 10
    np.testing.assert_array_equal(drawn, np.concatenate(again.groups))
    np.testing.assert_array_equal(first.influence, again.influence)
    assert not np.array_equal(drawn, np.concatenate(other.groups))


def test_drawn_groups_are_disjoint_while_the_training_set_lasts(asked: tuple) -> None:
    found = leave_groups_out(*asked, groups=5, fraction=0.25, **QUIET)
    assert [len(group) for group in found.groups] == [6] * 5
    assert len(np.unique(np.concatenate(found.groups[:4]))) == 24


def test_a_truth_is_saved_and_opened(asked: tuple, tmp_path: Path) -> None:
    made = leave_groups_out(*asked, groups=[[1], [2, 3]], orders=2, query_samples=[1], **QUIET)
    made.save(tmp_path / "truth")
    opened = Truth.open(tmp_path / "truth")
    assert [group.tolist() for group in opened.groups] == [[1], [2, 3]]
    for name in ("replicas", "influence", "per_query", "queries"):
        np.testing.assert_array_equal(getattr(opened, name), getattr(made, name))
    assert (opened.order_seeds, opened.kind, opened.metadata) == (made.order_seeds, made.kind, dict(made.metadata))


def test_the_exact_derivative_predicts_subsets_where_training_is_nearly_linear(tmp_path: Path) -> None:
    training = Training(mlp, sgd(lr=0.02))
    asked = (*training.recorded(tmp_path / "run"), training.train, training.query)
    exact = leave_one_out(*asked, samples=None, weight=0.999, query_samples=[0, 5], **QUIET)
    truth = subsets(*asked, count=24, fraction=0.75, query_samples=[0, 5], **QUIET)
    assert agreement(exact.influence, truth).spearman > 0.95
    assert exact.per_query is not None
    assert agreement(exact.per_query, truth).spearman > 0.9
    assert agreement(-exact.influence, truth).spearman < -0.95


@pytest.mark.parametrize(
    ("function", "options", "said"),
    [
        (leave_one_out, {"samples": [24]}, "0 to 23"),
        (leave_one_out, {"samples": 0}, "samples=0"),
        (leave_one_out, {"samples": [1, 1]}, "comes twice"),
        (leave_one_out, {"weight": 1.0}, "weight=1.0"),
        (leave_one_out, {"orders": -1}, "orders=-1"),
        (leave_one_out, {"processes": 0}, "processes=0"),
        (leave_one_out, {"query_samples": [12]}, "query_samples"),
        (leave_groups_out, {"groups": []}, "at least one group"),
        (leave_groups_out, {"fraction": 0.0}, "fraction=0.0"),
        (subsets, {"fraction": 1.0}, "fraction below 1"),
        (expected_influence, {"orders": 0}, "orders=0"),
    ],
)
def test_a_wrong_argument_is_named(asked: tuple, function: object, options: dict, said: str) -> None:
    with pytest.raises(EvaluationError, match=said):
        function(*asked, **options, **QUIET)


def test_data_that_changes_between_readings_is_refused(asked: tuple, training: Training) -> None:
    class Augmented(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return training.size

        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            inputs, target = training.train[index]
            return inputs + torch.randn(5, dtype=torch.float64), target

    task, trajectory, _, query = asked
    with pytest.raises(TrajectoryError, match="random augmentation"):
        leave_one_out(task, trajectory, Augmented(), query, **QUIET)


def test_another_training_set_is_refused(asked: tuple) -> None:
    task, trajectory, train, query = asked
    with pytest.raises((TrajectoryError, DatasetError), match="24"):
        leave_one_out(task, trajectory, TensorDataset(*train[:20]), query, **QUIET)


def test_a_training_that_does_not_repeat_in_the_end_is_refused(asked: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    # What is checked step by step agrees; what a chaotic training comes to, later, does not.
    from diffin.evaluation.question import Question

    losses = Question.losses
    calls = iter(range(10**9))

    def drifting(self: Question, state: object) -> np.ndarray:
        return losses(self, state) * (1 + next(calls))

    monkeypatch.setattr(Question, "losses", drifting)
    with pytest.raises(TrajectoryError, match="orders=8"):
        leave_one_out(*asked, samples=2, **QUIET)


def test_trainings_that_diverge_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    training = Training(mlp, sgd(lr=0.2))
    asked = (*training.recorded(tmp_path / "run"), training.train, training.query)
    found = leave_groups_out(*asked, groups=[[1], list(range(24))], weight=1e300, **QUIET)
    assert np.isnan(found.influence).any()
    assert "not finite" in caplog.text


@pytest.fixture(autouse=True)
def _model_is_only_read(request: pytest.FixtureRequest) -> Iterator[None]:
    if "asked" not in request.fixturenames:
        yield
        return
    task: Classification = request.getfixturevalue("asked")[0]
    before = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}
    yield
    for name, tensor in task.model.state_dict().items():
        assert torch.equal(before[name], tensor)
