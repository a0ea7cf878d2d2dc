"""Kept samples are drawn by how much forgetting would move their outputs, and stand for all without bias."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from deletion_runs import clusters, network
from torch.func import functional_call, hessian, jacrev

from diffin.actions.delete.drawing import candidates, drawn, probabilities, relevance
from diffin.derivatives.gradient import SampleSet
from diffin.task import PerSampleLoss, frozen
from diffin.tasks import Classification


def test_chances_add_up_and_none_is_above_one() -> None:
    found = probabilities(np.array([0.0, 0.0, 1.0, 2.0, 1000.0, 4.0]), 3)
    assert found.sum() == pytest.approx(3)
    assert (found <= 1).all()
    assert (found > 0).all()
    assert found[4] == 1
    assert found[0] == found[1] < found[2] < found[3] < found[5]


@pytest.mark.parametrize("nothing", [np.zeros(7), np.full(7, np.inf)])
def test_where_nothing_is_known_all_chances_are_alike(nothing: Any) -> None:
    np.testing.assert_allclose(probabilities(nothing, 2), 2 / 7)


def test_draws_have_the_chances_asked_for_and_weights_that_take_them_back() -> None:
    kept = np.arange(100, 140)
    relevant = np.random.default_rng(0).random(40) ** 4
    values = np.random.default_rng(1).random(40)
    generator = np.random.default_rng(2)
    times, means = np.zeros(40), []
    for _ in range(3000):
        chosen, weights = drawn(kept, 12, lambda: relevant, generator)
        assert len(chosen) == 12
        assert (np.diff(chosen) > 0).all()
        assert weights.sum() == pytest.approx(1)
        times[chosen - 100] += 1
        means.append(weights @ values[chosen - 100])
    np.testing.assert_allclose(times / 3000, probabilities(relevant, 12), atol=0.03)
    assert np.mean(means) == pytest.approx(values.mean(), abs=0.01)


def test_all_are_taken_where_there_are_no_more() -> None:
    for count in (None, 5, 9):
        chosen, weights = drawn(np.arange(5), count, None, np.random.default_rng(0))  # type: ignore[arg-type]
        np.testing.assert_array_equal(chosen, np.arange(5))
        np.testing.assert_allclose(weights, 0.2)


def test_only_so_many_candidates_are_looked_at() -> None:
    generator = np.random.default_rng(0)
    assert len(candidates(np.arange(10_000), 16, generator)) == 64
    np.testing.assert_array_equal(candidates(np.arange(64), 16, generator), np.arange(64))
    np.testing.assert_array_equal(candidates(np.arange(10_000), None, generator), np.arange(10_000))


def test_relevance_is_that_of_the_dense_matrices() -> None:
    model = network()
    inputs, labels = clusters(24, 1).tensors
    scale = {n: 0.1 + torch.rand_like(p) for n, p in model.named_parameters()}
    parameters = {n: p.detach() for n, p in model.named_parameters()}

    def one(p: Any) -> Any:
        return F.cross_entropy(functional_call(model, p, (inputs[:1],)), labels[:1])

    slope = torch.func.grad(one)(parameters)
    outputs = functional_call(model, parameters, (inputs[1:],))
    jacobian = jacrev(lambda p: functional_call(model, p, (inputs[1:],)))(parameters)
    moved = sum(torch.einsum("bc...,...->bc", jacobian[n], scale[n] ** 2 * slope[n]) for n in parameters)
    expected = [
        float(t @ hessian(lambda f, y=y: F.cross_entropy(f[None], y[None]))(f) @ t)
        for f, t, y in zip(outputs, moved, labels[1:], strict=True)
    ]
    batches = [(inputs[1:14], labels[1:14]), (inputs[14:], labels[14:])]
    with frozen(model):
        found = relevance(
            PerSampleLoss(Classification(model)), SampleSet(lambda: [(inputs[:1], labels[:1])], "z"),
            SampleSet(lambda: batches, "kept"), scale, np.random.default_rng(0),
        )  # fmt: skip
    # The sign of a single sample squares away: each of the draws says the same.
    np.testing.assert_allclose(found**2 / (found**2).sum(), np.array(expected) / sum(expected), rtol=1e-6)
