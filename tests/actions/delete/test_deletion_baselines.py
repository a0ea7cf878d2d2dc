"""What deletion is compared with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from deletion_runs import clusters, network, trained

from diffin.actions.delete import baselines
from diffin.actions.delete.training import Recipe
from diffin.errors import DiffinError

FORGOTTEN = np.arange(0, 60, 5)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    data = clusters(60, 0)
    task, trajectory = trained(tmp_path_factory.mktemp("baselines") / "run", data, network(40), steps=400, lr=0.2)
    return task, trajectory, data


def loss_on(state: dict[str, torch.Tensor], data: Any, chosen: Any) -> float:
    model = network(40)
    model.load_state_dict(state)
    inputs, labels = (t[chosen] for t in data.tensors)
    return float(F.cross_entropy(model(inputs), labels).detach())


def test_each_forgets(run: Any) -> None:
    task, trajectory, data = run
    recipe = Recipe(20, 0.05, 12)
    original = loss_on(trajectory.final.state, data, FORGOTTEN)
    arguments = (task, trajectory, data, FORGOTTEN, recipe)
    for state in (
        baselines.gradient_ascent(*arguments),
        baselines.neggrad_plus(*arguments, keep=0.5),
        baselines.random_relabel(*arguments, classes=3),
    ):
        assert loss_on(state, data, FORGOTTEN) > original + 0.01


def test_fine_tuning_trains_on_the_rest_only(run: Any) -> None:
    task, trajectory, data = run
    kept = np.setdiff1d(np.arange(60), FORGOTTEN)
    state = baselines.fine_tuning(task, trajectory, data, FORGOTTEN, Recipe(50, 0.1, 12))
    assert loss_on(state, data, kept) < loss_on(trajectory.final.state, data, kept)
    changed = torch.utils.data.TensorDataset(data.tensors[0].clone(), data.tensors[1].clone())
    changed.tensors[1][FORGOTTEN] = 0
    again = baselines.fine_tuning(task, trajectory, changed, FORGOTTEN, Recipe(50, 0.1, 12))
    assert all(torch.equal(t, again[n]) for n, t in state.items())


def test_no_steps_change_nothing_and_a_rate_of_nothing_is_refused(run: Any) -> None:
    task, trajectory, data = run
    state = baselines.gradient_ascent(task, trajectory, data, FORGOTTEN, Recipe(0, 0.1, 12))
    assert all(torch.equal(t, state[n]) for n, t in trajectory.final.state.items())
    with pytest.raises(DiffinError, match="rate above 0"):
        Recipe(10, 0.0, 12)


def test_a_recipe_like_the_training_has_its_batches(run: Any) -> None:
    recipe = Recipe.like(run[1], 10)
    assert recipe.batch_size == 20
    assert recipe.rate == pytest.approx(0.02)
