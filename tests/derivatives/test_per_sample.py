"""Gradients of every sample, their norms and their products against dense autodiff of one sample at a time, in float64."""

from __future__ import annotations

import logging
import weakref
from typing import Any

import pytest
import torch
from layer_kinds import KINDS, case
from torch import Tensor, nn

from cases import SAMPLES, make, random_direction
from diffin.batches import select
from diffin.derivatives.per_sample import PerSampleGradients
from diffin.task import PerSampleLoss, frozen
from diffin.tasks import FunctionTask

TOLERANCE = 1e-10


def reference(loss: PerSampleLoss, batch: Any, at: dict[str, Tensor]) -> dict[str, Tensor]:
    """One sample at a time: the gradient of its loss by autograd."""
    each = []
    for index in range(SAMPLES):
        point = {name: t.detach().clone().requires_grad_() for name, t in at.items()}
        value = loss(point, select(batch, slice(index, index + 1)))[0]
        found = torch.autograd.grad(value, list(point.values()), allow_unused=True)
        each.append([torch.zeros_like(p) if g is None else g for p, g in zip(point.values(), found, strict=True)])
    return {name: torch.stack([one[i] for one in each]) for i, name in enumerate(at)}


@pytest.mark.parametrize("name", KINDS)
def test_rows_are_the_gradients_of_the_samples(name: str) -> None:
    here = case(name)
    with frozen(here.task.model):
        loss = PerSampleLoss(here.task)
        wanted = reference(loss, here.batch, loss.parameters)
        losses, rows = PerSampleGradients(loss).rows(here.batch)
        found = dict(rows)
        assert set(found) == set(wanted)
        for parameter, row in found.items():
            torch.testing.assert_close(row, wanted[parameter], rtol=TOLERANCE, atol=TOLERANCE)
        torch.testing.assert_close(losses, loss(loss.parameters, here.batch).detach())


@pytest.mark.parametrize("directions", [0, 1, 3])
@pytest.mark.parametrize("name", KINDS)
def test_sums_are_those_of_the_gradients_away_from_the_checkpoint_too(name: str, directions: int) -> None:
    here = case(name)
    with frozen(here.task.model):
        loss = PerSampleLoss(here.task)
        move = random_direction(loss, 7)
        at = {parameter: t + 0.05 * move[parameter] for parameter, t in loss.parameters.items()}
        wanted = reference(loss, here.batch, at)
        rates = {parameter: 0.5 + i for i, parameter in enumerate(at)}
        along = [random_direction(loss, seed) for seed in range(directions)]
        stacked = {parameter: torch.stack([u[parameter] for u in along]) for parameter in at} if along else None
        sums = PerSampleGradients(loss, at).sums(here.batch, rates, stacked)
        squares = sum(rates[p] * row.square().flatten(1).sum(1) for p, row in wanted.items())
        products = [sum((row * u[p]).flatten(1).sum(1) for p, row in wanted.items()) for u in along]
        torch.testing.assert_close(sums.squares, squares, rtol=TOLERANCE, atol=TOLERANCE)
        assert sums.products.shape == (SAMPLES, directions)
        for found, product in zip(sums.products.T, products, strict=True):
            torch.testing.assert_close(found, product, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(sums.losses, loss(at, here.batch).detach())


def test_one_sample_is_enough_and_does_not_decide_for_others() -> None:
    here = make("transformer")
    with frozen(here.task.model):
        loss = PerSampleLoss(here.task)
        gradients = PerSampleGradients(loss)
        wanted = reference(loss, here.batch, loss.parameters)
        for index in (0, 3):
            for name, row in gradients.rows(select(here.batch, slice(index, index + 1)))[1]:
                torch.testing.assert_close(row[0], wanted[name][index], rtol=TOLERANCE, atol=TOLERANCE)
        for name, row in gradients.rows(here.batch)[1]:
            torch.testing.assert_close(row, wanted[name], rtol=TOLERANCE, atol=TOLERANCE)


def test_layers_that_are_not_studied_cost_nothing() -> None:
    here = make("cnn with batch norm")
    called = []
    with frozen(here.task.model):
        loss = PerSampleLoss(here.task, parameters=["7.*"])
        gradients = PerSampleGradients(loss)
        dict(gradients.rows(here.batch)[1])
        handle = here.task.model[3].register_full_backward_hook(lambda *given: called.append(given))
        _, rows = gradients.rows(here.batch)
        found = dict(rows)
        handle.remove()
    assert set(found) == {"7.weight", "7.bias"}
    assert not called


def test_a_sample_without_a_finite_loss_spoils_no_other() -> None:
    here = make("mlp")
    inputs, targets = here.batch
    spoiled = (inputs.index_fill(0, torch.tensor([0]), float("nan")), targets)
    with frozen(here.task.model):
        loss = PerSampleLoss(here.task)
        wanted = PerSampleGradients(loss).sums(here.batch)
        found = PerSampleGradients(loss).sums(spoiled)
    torch.testing.assert_close(found.squares[1:], wanted.squares[1:])
    assert bool(found.squares[0].isnan())


def test_what_goes_without_hooks_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    here = case("branching")
    with frozen(here.task.model), caplog.at_level(logging.INFO):
        gradients = PerSampleGradients(PerSampleLoss(here.task))
        for _ in range(2):
            dict(gradients.rows(here.batch)[1])
    assert caplog.text.count("no hook sees") == 1
    assert caplog.text.count("go one by one") == 1


def test_rows_are_formed_for_one_parameter_at_a_time() -> None:
    """What is alive between two parameters does not grow with the number of parameters."""
    layers = [nn.Linear(32, 32) for _ in range(8)]
    model = nn.Sequential(*layers).double()
    task = FunctionTask(model, lambda model, x: model(x).square().sum(1))
    with frozen(model):
        alive: list[weakref.ref[Tensor]] = []
        most = 0
        for _, row in PerSampleGradients(PerSampleLoss(task)).rows(torch.randn(4, 32, dtype=torch.float64))[1]:
            alive.append(weakref.ref(row))
            most = max(most, sum(one() is not None for one in alive))
            del row
    assert most == 1
