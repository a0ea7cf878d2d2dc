"""Attacks on membership."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from deletion_runs import clusters, network, trained

from diffin.actions.delete import delete
from diffin.actions.delete.membership import area_under_curve, logit_of_probability, population_scores, shadow_states
from diffin.rerun import Rerun
from diffin.sources import open_source


def test_the_area_is_the_share_of_pairs_in_order() -> None:
    generator = np.random.default_rng(0)
    members, others = generator.integers(0, 6, 40).astype(float), generator.integers(1, 8, 30).astype(float)
    pairs = [1.0 if m > o else 0.5 if m == o else 0.0 for m in members for o in others]
    assert area_under_curve(members, others) == pytest.approx(np.mean(pairs))
    assert np.isnan(area_under_curve(members, others[:0]))


def test_a_score_is_the_distance_from_models_without_the_sample() -> None:
    probabilities = np.array([[0.5, 0.9], [0.7, 0.8], [0.99, 0.2]])
    losses = -np.log(probabilities)
    losses[2, 0] = np.nan
    found = population_scores(-np.log(np.array([0.9, 0.6])), losses)
    logits = np.log(probabilities / (1 - probabilities))
    first, second = logits[:2, 0], logits[:, 1]
    spread = np.sqrt(np.concatenate([(first - first.mean()) ** 2, (second - second.mean()) ** 2]).mean())
    expected = (np.log([9.0, 1.5]) - [first.mean(), second.mean()]) / spread
    np.testing.assert_allclose(found, expected)
    assert np.isfinite(logit_of_probability(np.array([0.0, 1e3]))).all()


def test_shadows_are_trainings_without_their_half(tmp_path: Path) -> None:
    data = clusters(40, 0)
    task, trajectory = trained(tmp_path / "run", data, network(), steps=30)
    chosen = np.array([1, 4, 9, 20, 33])
    rerun = Rerun(task, trajectory, open_source(data))
    states, trained_on = shadow_states(rerun, chosen, 4, 0, lambda steps: None)
    assert (trained_on[0] ^ trained_on[1]).all()
    assert (trained_on[2] ^ trained_on[3]).all()
    weights = torch.ones(40, dtype=torch.float64)
    weights[torch.from_numpy(chosen[~trained_on[1]])] = 0
    with rerun.entered():
        assert trajectory.initial is not None
        state = rerun.state(trajectory.initial)
        while state.step < rerun.total_steps:
            state = rerun.advance(state, weights)
    for name, t in state.parameters.items():
        torch.testing.assert_close(states[1][name], t)


def test_shadow_models_see_what_a_threshold_does_not(tmp_path: Path) -> None:
    data = clusters(60, 0)
    task, trajectory = trained(tmp_path / "run", data, network(40), steps=300, lr=0.3, momentum=0.9)
    found = delete(
        task, trajectory, data, range(0, 60, 5), test=clusters(200, 9), shadows=8, retrained=True, progress=False
    ).certificate.models
    assert found["original"].population_attack is not None
    assert found["original"].threshold_attack is not None
    assert found["retrained"].population_attack is not None
    assert found["original"].population_attack > found["original"].threshold_attack
    assert found["original"].population_attack > found["retrained"].population_attack + 0.1
