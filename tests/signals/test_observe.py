"""Signals against plain loops over samples and states."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from cases import make
from diffin import Trajectory
from diffin.errors import TaskError, TrajectoryError
from diffin.signals import Signals, observe
from diffin.tasks import Classification
from training import record


def _recorded(path: Path, name: str) -> tuple[Classification, Trajectory, TensorDataset]:
    case = make(name)
    assert isinstance(case.task, Classification)
    inputs, targets = case.batch
    dataset = TensorDataset(inputs, targets)
    return case.task, record(path / "run", case.task, dataset, checkpoints=3), dataset


def _at(task: Classification, state: dict[str, torch.Tensor]) -> nn.Module:
    model = copy.deepcopy(task.model)
    model.load_state_dict(state, strict=False)  # of tied weights the state holds one
    return model.eval()


@pytest.fixture(params=["mlp", "cnn with batch norm", "transformer"])
def recorded(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Classification, Trajectory, TensorDataset]:
    return _recorded(tmp_path, request.param)


def test_signals_are_those_of_a_plain_loop(recorded: tuple[Classification, Trajectory, TensorDataset]) -> None:
    task, trajectory, dataset = recorded
    signals = observe(task, trajectory, dataset, batch_size=4, progress=False)
    assert trajectory.final is not None
    states = [c for c in (*trajectory.checkpoints, trajectory.final) if c.step > 0]
    assert signals.steps == tuple(state.step for state in states)
    mean = np.zeros_like(signals.final_probabilities, dtype=np.float64)
    for column, state in enumerate(states):
        model = _at(task, state.state)
        for row, (x, y) in enumerate(dataset):
            with torch.no_grad():
                logits = model(x[None])[0].double()
            probability = torch.softmax(logits, 0)
            others = [float(value) for number, value in enumerate(logits) if number != int(y)]
            margin = float(logits[y]) - max(others)
            assert signals.labels[row] == int(y)
            assert signals.loss[row, column] == pytest.approx(-float(torch.log(probability[y])))
            assert signals.margin[row, column] == pytest.approx(margin)
            assert signals.correct[row, column] == (margin > 0)
            onehot = torch.eye(len(logits), dtype=torch.float64)[y]
            assert signals.el2n[row, column] == pytest.approx(float((probability - onehot).norm()))
            mean[row] += probability.numpy() / len(states)
            if column == len(states) - 1:
                np.testing.assert_allclose(signals.final_probabilities[row], probability.numpy(), rtol=1e-5)
    np.testing.assert_allclose(signals.probabilities, mean, rtol=1e-4)
    np.testing.assert_allclose(signals.mean_loss, signals.loss.mean(axis=1))


def test_features_and_head_make_the_final_logits(recorded: tuple[Classification, Trajectory, TensorDataset]) -> None:
    task, trajectory, dataset = recorded
    signals = observe(task, trajectory, dataset, progress=False)
    assert trajectory.final is not None
    assert signals.features is not None
    model = _at(task, trajectory.final.state)
    head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        logits = head(torch.from_numpy(signals.features).double())
    np.testing.assert_allclose(torch.softmax(logits, 1), signals.final_probabilities, rtol=1e-4, atol=1e-6)


def test_signals_do_not_depend_on_the_batch_size_nor_change_the_model(
    recorded: tuple[Classification, Trajectory, TensorDataset],
) -> None:
    task, trajectory, dataset = recorded
    before = {name: t.clone() for name, t in task.model.state_dict().items()}
    one, all_of_them = (observe(task, trajectory, dataset, batch_size=n, progress=False) for n in (1, 6))
    np.testing.assert_allclose(one.loss, all_of_them.loss, rtol=1e-10)
    np.testing.assert_allclose(one.features, all_of_them.features, rtol=1e-5)
    assert all(torch.equal(t, before[name]) for name, t in task.model.state_dict().items())


def test_hidden_features_are_those_of_every_state_and_of_the_one_before_the_first_step(
    recorded: tuple[Classification, Trajectory, TensorDataset],
) -> None:
    task, trajectory, dataset = recorded
    signals = observe(task, trajectory, dataset, hidden=True, progress=False)
    assert list(signals.hidden) == [0, *signals.steps]
    np.testing.assert_array_equal(signals.hidden[signals.steps[-1]], signals.features)
    assert not observe(task, trajectory, dataset, progress=False).hidden
    assert trajectory.initial is not None
    model = _at(task, trajectory.initial.state)
    head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        logits = head(torch.from_numpy(signals.hidden[0]).double())
        expected = model(dataset.tensors[0])
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_forgetting_counts_falls_and_puts_what_was_never_learned_last() -> None:
    correct = np.array([[1, 1, 1, 1], [0, 1, 0, 1], [1, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]], dtype=bool)
    empty = np.zeros((5, 4))
    singles = np.zeros((5, 2), dtype=np.float32)
    numbers = np.arange(5)
    signals = Signals(numbers, (1, 2, 3, 4), numbers, empty, empty, empty, correct, singles, singles, None, None)
    assert signals.forgetting.tolist() == [0, 1, 2, 4, 0]


def test_what_is_no_classification_is_refused(tmp_path: Path) -> None:
    case = make("regression")
    with pytest.raises(TaskError, match=r"diffin\.tasks\.Classification"):
        observe(case.task, Trajectory(None, 6, 0, complete=False), TensorDataset(*case.batch), progress=False)
    task, trajectory, dataset = _recorded(tmp_path, "mlp")
    inputs, targets = dataset.tensors
    soft = TensorDataset(inputs, torch.nn.functional.one_hot(targets, 3).double())
    with pytest.raises(TaskError, match="class numbers"):
        observe(task, trajectory, soft, progress=False)
    with pytest.raises(TaskError, match="class 7"):
        observe(task, trajectory, TensorDataset(inputs, torch.full_like(targets, 7)), progress=False)
    with pytest.raises(TrajectoryError, match="no state after its first step"):
        observe(task, Trajectory(None, 6, 0, complete=False), dataset, progress=False)
