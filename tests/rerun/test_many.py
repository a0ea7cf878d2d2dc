"""Many reruns at once, against a training loop written out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffin.errors import DiffinError
from diffin.rerun import Rerun, State
from diffin.rerun.many import Manner, choose_manner, final_states
from diffin.sources import open_source
from retrained import TRAININGS, Training, sgd

LOOPED = {"looking at values", "batch norm that looks at its count"}


def random_weights(training: Training, runs: int = 5) -> Tensor:
    weights = torch.rand(runs, training.size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weights[0] = 1
    weights[1, 3] = 0
    return weights


def rerun_of(training: Training, path: Path) -> Rerun:
    task, trajectory = training.recorded(path)
    return Rerun(task, trajectory, open_source(training.train))


def finals(rerun: Rerun, weights: Tensor, manner: Manner | None = None) -> list[State]:
    with rerun.entered():
        return list(final_states(rerun, weights, manner or choose_manner(rerun)))


@pytest.mark.parametrize("name", TRAININGS)
@pytest.mark.parametrize("method", ["auto", "loop"])
def test_every_run_ends_where_plain_training_does(name: str, method: str, tmp_path: Path) -> None:
    training = TRAININGS[name]()
    rerun, weights = rerun_of(training, tmp_path / "run"), random_weights(training)
    states = finals(rerun, weights, Manner("loop", 1) if method == "loop" else None)
    assert len(states) == len(weights)
    for state, own in zip(states, weights, strict=True):
        expected = training.run(own)
        for parameter, tensor in expected.named_parameters():
            torch.testing.assert_close(state.parameters[parameter], tensor.detach(), rtol=1e-7, atol=1e-9)
        for buffer, tensor in expected.named_buffers():
            torch.testing.assert_close(state.buffers[buffer], tensor, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", TRAININGS)
def test_trainings_are_stacked_unless_the_model_looks_at_values(name: str, tmp_path: Path) -> None:
    rerun = rerun_of(TRAININGS[name](), tmp_path / "run")
    with rerun.entered():
        manner = choose_manner(rerun)
    assert manner.method == ("loop" if name in LOOPED else "vmap"), manner
    assert (manner.at_once > 1) == (manner.method == "vmap")
    assert bool(manner.reason) == (manner.method == "loop")


def test_a_run_does_not_depend_on_those_beside_it(tmp_path: Path) -> None:
    training = TRAININGS["batch norm"]()
    rerun, weights = rerun_of(training, tmp_path / "run"), random_weights(training)
    all_at_once, by_two = (finals(rerun, weights, Manner("vmap", n)) for n in (5, 2))
    for a, b in zip(all_at_once, by_two, strict=True):
        for name, tensor in a.parameters.items():
            torch.testing.assert_close(tensor, b.parameters[name])


def test_stacks_hold_fewer_runs_of_a_larger_training(tmp_path: Path) -> None:
    small = rerun_of(TRAININGS["sgd"](), tmp_path / "small")
    wide = Training(lambda: torch.nn.Linear(40_000, 3), sgd(), shape=(40_000,))
    large = rerun_of(wide, tmp_path / "large")
    chosen = []
    for rerun in (small, large):
        with rerun.entered():
            chosen.append(choose_manner(rerun).at_once)
    assert chosen[0] == 128 > chosen[1] > 1


def test_what_cannot_be_stacked_is_refused_when_stacking_is_insisted_on(tmp_path: Path) -> None:
    rerun = rerun_of(TRAININGS["looking at values"](), tmp_path / "run")
    with rerun.entered(), pytest.raises(DiffinError, match="cannot be stacked"):
        choose_manner(rerun, method="vmap")
    with rerun.entered(), pytest.raises(DiffinError, match="at_once=0"):
        choose_manner(rerun, at_once=0)


def test_the_model_and_the_random_numbers_of_the_caller_stay_as_they_are(tmp_path: Path) -> None:
    training = TRAININGS["dropout"]()
    rerun = rerun_of(training, tmp_path / "run")
    before = {name: tensor.clone() for name, tensor in rerun.task.model.state_dict().items()}
    generator = torch.get_rng_state()
    finals(rerun, random_weights(training))
    assert torch.equal(generator, torch.get_rng_state())
    for name, tensor in rerun.task.model.state_dict().items():
        assert torch.equal(before[name], tensor)
