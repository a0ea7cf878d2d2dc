"""Adjoints carried by differences of gradients, against those that are differentiated whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import diffin
from diffin import vectors
from diffin.derivatives.gradient import SampleSet
from diffin.estimators.replay import query_adjoint
from diffin.rerun import Adjoint, Rerun, walk
from diffin.rerun.products import carry_back
from diffin.sources import open_source
from repeatable import REPEATABLE, set_of
from retrained import Training


def rerun_and_query(training: Training, path: Path) -> tuple[Rerun, SampleSet]:
    task, trajectory = training.recorded(path)
    return Rerun(task, trajectory, open_source(training.train)), set_of(training.query)


def assert_near(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], size: float) -> None:
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-5 * size)


@pytest.mark.parametrize("name", [name for name in REPEATABLE if not name.startswith("batch norm")])
def test_every_step_is_carried_as_if_differentiated(name: str, tmp_path: Path) -> None:
    rerun, query = rerun_and_query(REPEATABLE[name](), tmp_path / "run")
    with rerun.entered():
        for stretch in walk.backwards(rerun, keep_gradients=True):
            if stretch.end.step == rerun.total_steps:
                adjoint = query_adjoint(rerun, stretch.end, query)
            after = stretch.end
            for state in stretch.states:
                assert after.gradients is not None
                pulled = rerun.pull_back(state, [adjoint])
                assert pulled is not None
                found, direction = carry_back(rerun, state, adjoint, after.gradients)
                wanted: Adjoint = pulled.adjoints[0]
                assert_near(direction, pulled.directions[0], vectors.norm(pulled.directions[0]))
                assert_near(found.parameters, wanted.parameters, vectors.norm(wanted.parameters))
                for key, vector in wanted.slots.items():
                    assert_near(found.slots[key], vector, vectors.norm(vector) or 1.0)
                adjoint, after = wanted, state


def test_gradients_that_are_not_kept_are_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = REPEATABLE["dropout in micro-batches"]()
    task, trajectory = training.recorded(tmp_path / "run")
    estimator = diffin.Unrolled(propagation="steps", hessian="difference")

    def influence() -> list[float]:
        scores = diffin.score(
            task, trajectory, training.train, query=training.query, estimator=estimator, derivatives="forward",
            progress=False,
        )  # fmt: skip
        return scores.influence.tolist()

    before = influence()
    monkeypatch.setattr(walk, "_HELD_BYTES", 1)
    assert influence() == before
