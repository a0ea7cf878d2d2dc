"""Labels, predictions and texts, against plain loops over the data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from explored import SAMPLES, Explored
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from diffin.errors import TrajectoryError, UnreadableError
from diffin.explore.columns import Category, Numbers, Table
from diffin.explore.telling import Teller
from diffin.problem import Problem
from diffin.tasks import Classification, Regression


def empty(size: int) -> Table:
    return Table(size, {"influence": Numbers("influence", np.zeros(size))})


def told(problem: Problem, state: Any, size: int, table: Table | None = None) -> tuple[Teller, Table]:
    table = table or empty(size)
    teller = Teller(problem, state, table)
    for _ in teller.everything():
        pass
    return teller, table


def test_labels_and_predictions_are_those_of_the_final_model(explored: Explored) -> None:
    teller, table = told(explored.problem, explored.state, SAMPLES)
    images, labels = explored.problem.train.tensors
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10))
    model.load_state_dict(explored.state)
    for row in range(SAMPLES):
        with torch.no_grad():
            probabilities = torch.softmax(model(images[row : row + 1])[0].double(), 0)
        assert teller.said("label", row) == f"digit {int(labels[row])}"
        assert teller.said("predicted", row) == f"digit {int(probabilities.argmax())}"
        assert abs(table.numbers["confidence"].values[row] - float(probabilities.max())) < 1e-5
    assert teller.done == teller.total == SAMPLES
    assert not teller.trouble


def test_those_in_sight_are_told_at_once_and_no_others(explored: Explored) -> None:
    table = empty(SAMPLES)
    teller = Teller(explored.problem, explored.state, table)
    teller.tell([200, 3])
    assert np.flatnonzero(table.categories["label"].codes >= 0).tolist() == [3, 200]
    assert np.flatnonzero(np.isfinite(table.numbers["confidence"].values)).tolist() == [3, 200]


def test_the_model_of_the_problem_is_not_touched(explored: Explored) -> None:
    model = explored.problem.task.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = {name: tensor + 1 for name, tensor in explored.state.items()}
    model.train()
    told(explored.problem, state, SAMPLES)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_without_a_final_state_there_are_labels_only(explored: Explored) -> None:
    teller, table = told(explored.problem, None, SAMPLES)
    assert list(table.categories) == ["label"]
    assert teller.said("predicted", 0) is None
    assert teller.said("label", 0) is not None


def test_classes_without_names_are_numbers(explored: Explored) -> None:
    problem = replace(explored.problem, task=Classification(explored.problem.task.model))
    _, table = told(problem, explored.state, SAMPLES)
    assert table.categories["label"].names == [str(k) for k in range(10)]
    assert table.categories["predicted"].names is table.categories["label"].names


def test_labels_that_are_known_already_stay(explored: Explored) -> None:
    table = empty(SAMPLES)
    codes = np.full(SAMPLES, 4, dtype=np.int32)
    table.categories["label"] = Category("label", codes, [str(k) for k in range(10)])
    told(explored.problem, None, SAMPLES, table)
    assert (table.categories["label"].codes == 4).all()


def test_another_model_s_state_is_refused(explored: Explored) -> None:
    with pytest.raises(TrajectoryError):
        Teller(explored.problem, {"weight": torch.zeros(3)}, empty(SAMPLES))


def regression(size: int) -> tuple[Problem, dict[str, Tensor]]:
    torch.manual_seed(0)
    task = Regression(nn.Linear(3, 1))
    data = TensorDataset(torch.randn(size, 3), torch.arange(size).float().reshape(-1, 1))
    return Problem(task, data), dict(task.model.state_dict())


def test_of_regression_numbers_are_said_and_listed_while_they_are_few() -> None:
    problem, state = regression(40)
    teller, table = told(problem, state, 40)
    inputs, _ = problem.train.tensors
    said = [f"{float(value):.3g}" for value in problem.task.model(inputs).detach()]
    assert [teller.said("predicted", row) for row in range(40)] == said
    assert [teller.said("label", row) for row in range(40)] == [f"{row:.3g}" for row in range(40)]
    assert "label" in table.categories


def test_of_regression_with_many_values_there_is_nothing_to_choose_from() -> None:
    problem, state = regression(900)
    teller, table = told(problem, state, 900)
    assert not table.categories
    assert teller.said("label", 899) == "899"


class Reviews(Dataset[Any]):
    """Texts with a class; some cannot be read."""

    def __len__(self) -> int:
        return 5000

    def __getitem__(self, row: int) -> tuple[str, int]:
        if row in (7, 4096):
            raise UnreadableError("torn")
        return f"Review number {row}: {'Grand' if row % 3 else 'dull'}", row % 2


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, 2)

    def forward(self, lengths: Tensor) -> Tensor:
        return self.head(lengths)


def collate(items: list[tuple[str, int]]) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([[float(len(text))] for text, _ in items])
    return lengths, torch.tensor([label for _, label in items])


def test_texts_are_searched_and_the_unreadable_are_left_out() -> None:
    problem = Problem(Classification(Words()), Reviews(), collate=collate)
    teller, table = told(problem, None, 5000)
    found = np.flatnonzero(table.texts["text"].containing("DULL", 5000))
    assert found.tolist() == [row for row in range(5000) if row % 3 == 0 and row not in (7, 4096)]
    assert np.flatnonzero(table.texts["text"].containing("number 4097:", 5000)).tolist() == [4097]
    assert np.flatnonzero(table.categories["label"].codes < 0).tolist() == [7, 4096]
    assert teller.done == teller.total == 10_000


def test_what_the_problem_shows_is_searched() -> None:
    problem = Problem(
        Classification(Words()), Reviews(), collate=collate, show=lambda item: {"first": item[0][:6], "n": 1}
    )
    _, table = told(problem, None, 5000)
    assert table.texts["text"].containing("review", 5000).sum() == 4998
    assert not table.texts["text"].containing("number", 5000).any()


def test_pictures_have_no_words(explored: Explored) -> None:
    _, table = told(explored.problem, None, SAMPLES)
    assert "text" not in table.texts


def test_a_task_that_fails_costs_labels_and_nothing_else(explored: Explored) -> None:
    def broken(items: list[Any]) -> Any:
        raise RuntimeError("no such column")

    teller, table = told(replace(explored.problem, collate=broken), None, SAMPLES)
    assert "no such column" in teller.trouble
    assert (table.categories["label"].codes == -1).all()
    teller.tell([1, 2])  # and it is not tried again and again


class Streamed:
    """An iterable of unknown length."""

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        return iter([(torch.full((1,), float(row)), row % 2) for row in range(100)])


def test_an_iterable_is_read_as_well() -> None:
    _, table = told(Problem(Classification(Words()), Streamed()), None, 100)
    assert table.categories["label"].codes.tolist() == [row % 2 for row in range(100)]
