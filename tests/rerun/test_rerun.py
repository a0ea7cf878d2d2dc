"""A recorded training taken again ends where it was recorded, or says what is not as it was."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from diffin import Indexed, Recorder, Trajectory
from diffin.batches import select
from diffin.errors import DatasetError, DiffinError, TrajectoryError
from diffin.estimators.replay import query_adjoint
from diffin.rerun import Adjoint, Part, Rerun, State
from diffin.rerun.batches import recorded_order
from diffin.sources import open_source
from diffin.tasks import Classification, FunctionTask
from repeatable import REPEATABLE, adam, set_of
from retrained import Training, mlp, sgd


def rerun_of(training: Training, path: Path, train: Any = None) -> Rerun:
    task, trajectory = training.recorded(path)
    return Rerun(task, trajectory, open_source(training.train if train is None else train))


def last(rerun: Rerun) -> State:
    state = rerun.state(rerun.trajectory.stored[0])
    while state.step < rerun.total_steps:
        state = rerun.advance(state)
    return state


def assert_same(found: State, recorded: State) -> None:
    """To rounding: the loops sum a batch by ``mean`` and this one by a product with 1 / B."""
    near = {"rtol": 1e-9, "atol": 1e-12}
    assert found.step == recorded.step
    torch.testing.assert_close(found.parameters, recorded.parameters, **near)
    torch.testing.assert_close(found.buffers, recorded.buffers, **near)
    assert found.memory.counts == recorded.memory.counts
    assert found.memory.slots.keys() == recorded.memory.slots.keys()
    for key, vector in found.memory.slots.items():
        torch.testing.assert_close(vector, recorded.memory.slots[key], **near)


@pytest.mark.parametrize("name", REPEATABLE)
def test_every_stored_state_is_reached_again(name: str, tmp_path: Path) -> None:
    rerun = rerun_of(REPEATABLE[name](), tmp_path / "run")
    stored = {checkpoint.step: checkpoint for checkpoint in rerun.trajectory.stored}
    assert sorted(stored) == [0, 8, 20]
    with rerun.entered():
        state = first = rerun.state(stored[0])
        while state.step < rerun.total_steps:
            state = rerun.advance(state)
            if state.step in stored:
                assert_same(state, rerun.state(stored[state.step]))
                assert rerun.check(state, stored[state.step], first) < 1e-9
        assert (state.randomness is not None) == name.startswith("dropout")


@pytest.mark.parametrize("name", [name for name in REPEATABLE if not name.startswith(("batch norm", "dropout"))])
def test_a_sensitivity_is_the_share_times_the_gradient_along_the_direction(name: str, tmp_path: Path) -> None:
    """Also where parameters are tied, or added to each other and so have one gradient between them."""
    training = REPEATABLE[name]()
    rerun = rerun_of(training, tmp_path / "run")
    with rerun.entered():
        state = rerun.state(rerun.trajectory.stored[1])
        adjoint = query_adjoint(rerun, last(rerun), set_of(training.query))
        pulled = rerun.pull_back(state, [adjoint])
        assert pulled is not None
        position = 0
        for part in rerun.order(state.step):
            for index in part.indices:
                leaves = {n: t.clone().requires_grad_() for n, t in state.parameters.items()}
                loss = rerun.loss({**leaves, **state.buffers}, select(training.train.tensors, torch.tensor([index])))
                found = torch.autograd.grad(loss.sum(), list(leaves.values()), allow_unused=True)
                along = sum(
                    float((g * pulled.directions[0][n]).sum())
                    for n, g in zip(leaves, found, strict=True)
                    if g is not None
                )
                assert float(pulled.sensitivities[0, position]) == pytest.approx(
                    part.share * along, rel=1e-8, abs=1e-14
                )
                assert float(pulled.losses[position]) == pytest.approx(loss.item())
                position += 1


def test_a_skipped_step_changes_nothing_and_is_pulled_back_through_as_it_is(tmp_path: Path) -> None:
    """The optimizer does not count it either: the bias correction of Adam is that of the steps it took."""
    training = Training(mlp, adam())
    task, trajectory = training.recorded(tmp_path / "run")
    assert trajectory.steps is not None
    recorded = recorded_order(trajectory.steps)
    rerun = Rerun(task, trajectory, open_source(training.train), order=lambda t: () if t in (0, 5) else recorded(t))
    with rerun.entered():
        state = first = rerun.state(trajectory.stored[0])
        states = [state]
        for _ in range(rerun.total_steps):
            state = rerun.advance(state)
            states.append(state)
        assert rerun.pull_back(states[5], [Adjoint({}, {}, {})]) is None
    torch.testing.assert_close(states[1].parameters, first.parameters, rtol=0, atol=0)
    torch.testing.assert_close(states[6].parameters, states[5].parameters, rtol=0, atol=0)
    assert set(states[6].memory.counts.values()) == {4}
    model = training.model()
    optimizer = training.make_optimizer(model)
    for step, batch in enumerate(training.batches[:20]):
        if step not in (0, 5):
            optimizer.zero_grad()
            F.cross_entropy(model(training.train.tensors[0][batch]), training.train.tensors[1][batch]).backward()
            optimizer.step()
    torch.testing.assert_close(
        state.parameters, {n: p.detach() for n, p in model.named_parameters()}, rtol=1e-9, atol=0
    )


class Pairs(Dataset[dict[str, Any]]):
    """Samples that only a collate function of their own makes a batch of."""

    def __init__(self, data: TensorDataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        x, y = self.data[index]
        return {"x": x.tolist(), "y": int(y)}


def collate(samples: list[dict[str, Any]]) -> dict[str, Tensor]:
    x = torch.tensor([sample["x"] for sample in samples], dtype=torch.float64)
    return {"x": x, "y": torch.tensor([sample["y"] for sample in samples])}


def test_a_training_set_may_have_its_own_collate_function_or_hold_indices(tmp_path: Path) -> None:
    training = Training(mlp, sgd(momentum=0.9))
    task, trajectory = training.recorded(tmp_path / "run")
    own = FunctionTask(
        task.model, lambda model, batch: F.cross_entropy(model(batch["x"]), batch["y"], reduction="none")
    )
    for some_task, source in (
        (own, open_source(Pairs(training.train), collate=collate)),
        (task, open_source(Indexed(training.train))),
    ):
        rerun = Rerun(some_task, trajectory, source)
        with rerun.entered():
            assert_same(last(rerun), rerun.state(trajectory.stored[-1]))


class Drawing(nn.Module):
    """Leaves its hidden layer out now and then, as the generator that is passed says."""

    def __init__(self, draw: Callable[[], float]) -> None:
        super().__init__()
        self.layer, self.skip = nn.Linear(5, 3), nn.Linear(5, 3)
        self._draw = draw

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.skip(x)
        return out + self.layer(x) if not self.training or self._draw() < 0.5 else out


@pytest.mark.parametrize("draw", [lambda: np.random.rand(), lambda: random.gauss(0.5, 1.0)], ids=["numpy", "python"])
def test_draws_from_every_global_generator_are_repeated(draw: Callable[[], float], tmp_path: Path) -> None:
    np.random.seed(0)
    random.seed(0)
    rerun = rerun_of(Training(lambda: Drawing(draw), sgd()), tmp_path / "run")
    with rerun.entered():
        assert rerun.draws
        assert_same(last(rerun), rerun.state(rerun.trajectory.stored[-1]))


class Augmented(Dataset[Any]):
    """Adds noise to a sample whenever it is read."""

    def __init__(self, data: TensorDataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        x, y = self.data[index]
        return x + 0.3 * torch.randn_like(x), y


class Stream(IterableDataset[Any]):
    def __init__(self, data: TensorDataset) -> None:
        self.data = data

    def __iter__(self) -> Any:
        return (self.data[index] for index in range(len(self.data)))


def recorded_by_hand(
    path: Path,
    model: nn.Module,
    data: Dataset[Any],
    *,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    before_step: Callable[[], object] = lambda: None,
    indices: bool = True,
) -> Trajectory:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    np.random.seed(1)
    settings = {"dataset_size": 24, "total_steps": 12, "checkpoints": [0]}
    with torch.random.fork_rng(), Recorder(path, model, optimizer, **settings) as recorder:
        for step in range(12):
            batch = torch.arange(6) + 6 * (step % 4)
            before_step()
            x, y = (torch.stack([torch.as_tensor(data[int(i)][column]) for i in batch]) for column in (0, 1))
            optimizer.zero_grad()
            loss(model(x), y).backward()
            optimizer.step()
            recorder.step(batch if indices else None)
    return Trajectory.open(path)


def summed(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits, targets, reduction="sum")


def with_other_labels(data: TensorDataset) -> TensorDataset:
    x, y = data.tensors
    return TensorDataset(x, (y + 1) % 3)


@pytest.mark.parametrize(
    ("build", "seen", "given", "options", "message"),
    [
        (mlp, Augmented, Augmented, {}, "random augmentation"),
        (
            lambda: Drawing(np.random.rand),
            None,
            None,
            {"before_step": np.random.rand},
            "another draw of random numbers between the recorded forward passes",
        ),
        (mlp, None, None, {"loss": summed}, "not the mean of the task's losses"),
        (mlp, None, with_other_labels, {}, "not the same at every reading"),
    ],
    ids=["augmentation", "a draw between those of the model", "a sum for a loss", "changed data"],
)
def test_what_is_not_as_it_was_is_named(
    build: Callable[[], nn.Module], seen: Any, given: Any, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    training = Training(build, sgd())
    data = training.train if seen is None else seen(training.train)
    trajectory = recorded_by_hand(tmp_path / "run", training.model(), data, **options)
    now = training.train if given is None else given(training.train)
    rerun = Rerun(Classification(training.model()), trajectory, open_source(now))
    with pytest.raises(TrajectoryError, match=message):
        rerun.check_repeatable()


def test_a_training_that_can_be_repeated_passes_the_check(tmp_path: Path) -> None:
    training = Training(lambda: mlp(nn.Dropout(0.3)), sgd())
    shuffling = {"before_step": lambda: torch.randperm(24)}
    trajectory = recorded_by_hand(tmp_path / "run", training.model(), training.train, **shuffling)
    Rerun(Classification(training.model()), trajectory, open_source(training.train)).check_repeatable()


def test_recordings_and_data_that_do_not_suffice_are_refused(tmp_path: Path) -> None:
    training = Training(mlp, sgd())
    task = Classification(training.model())
    whole = recorded_by_hand(tmp_path / "whole", training.model(), training.train)
    without = recorded_by_hand(tmp_path / "without", training.model(), training.train, indices=False)
    source = open_source(training.train)
    with pytest.raises(TrajectoryError, match=r"samples of 12 of 12 steps are unknown.*pass indices to recorder\.step"):
        Rerun(task, without, source)
    with pytest.raises(TrajectoryError, match="36 samples and the run was recorded with 24"):
        Rerun(task, whole, open_source(TensorDataset(torch.zeros(36, 5), torch.zeros(36))))
    with pytest.raises(DatasetError, match="only be read in order"):
        Rerun(task, whole, open_source(Stream(training.train))).check_repeatable()
    torch.save(training.model().state_dict(), tmp_path / "model.pt")
    foreign = Trajectory.from_checkpoints([tmp_path / "model.pt"], [3], [0.1], dataset_size=24)
    with pytest.raises(TrajectoryError, match="not recorded"):
        Rerun(task, foreign, source)


def test_a_broken_sample_is_told_from_another_training(tmp_path: Path) -> None:
    training = Training(mlp, sgd())
    trajectory = recorded_by_hand(tmp_path / "run", training.model(), training.train)
    x, y = (t.clone() for t in training.train.tensors)
    x[3] = torch.nan
    rerun = Rerun(Classification(training.model()), trajectory, open_source(TensorDataset(x, y)))
    with pytest.raises(DiffinError, match=r"steps 0 to \d+, taken again, end at parameters that are not finite"):
        rerun.check_repeatable()


def test_micro_batches_count_the_same_however_many_samples_they_have(tmp_path: Path) -> None:
    training = REPEATABLE["uneven micro-batches"]()
    _, trajectory = training.recorded(tmp_path / "run")
    assert trajectory.steps is not None
    parts = recorded_order(trajectory.steps)(2)
    assert [(len(p.indices), p.share) for p in parts] == [(2, 1 / 8), (2, 1 / 8), (2, 1 / 8), (1, 1 / 4)]
    assert all(isinstance(part, Part) for part in parts)
