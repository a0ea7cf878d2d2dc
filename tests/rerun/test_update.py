"""A step as a function against the optimizers of PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from diffin.rerun import Memory
from diffin.rerun.update import GroupStep, update
from diffin.trajectory.optimizers import GroupReader

STEPS = 20
SHAPES = {"a": (3, 2), "b": (4,), "c": (), "never": (2,), "late": (3,)}


def gradients(step: int) -> dict[str, Tensor]:
    """Of every size; ``b`` has zeros at times, ``late`` no gradient for three steps, ``never`` none at all."""
    generator = torch.Generator().manual_seed(step)
    found = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in SHAPES.items()}
    found["a"] *= 10.0 ** (-(step % 5))
    found["b"] *= step % 2
    del found["never"]
    if step < 3:
        del found["late"]
    return found


def compare(kind: type[Optimizer], groups: list[dict[str, Any]], changes: bool = False, **both: Any) -> None:
    """Take the steps with both, from the same start. The groups share out the parameters in turn."""
    generator = torch.Generator().manual_seed(99)
    start = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in SHAPES.items()}
    names = [tuple(list(SHAPES)[number :: len(groups)]) for number in range(len(groups))]
    own = {name: torch.nn.Parameter(t.clone()) for name, t in start.items()}
    optimizer = kind(
        [{"params": [own[n] for n in ours], **options} for ours, options in zip(names, groups, strict=True)], **both
    )
    reader = GroupReader(optimizer)
    parameters, memory = start, Memory({}, {})
    for step in range(STEPS):
        if changes:
            for number, group in enumerate(optimizer.param_groups):
                group["lr"] = 0.1 * (number + 1) / (step + 1)
                group["weight_decay"] = 0.03 * (step % 2)
                if kind is SGD:
                    group["momentum"] = 0.03 * step  # the first step has none, and leaves no buffer
                else:
                    group["betas"] = (0.5 + 0.02 * step, 0.9 + 0.004 * step)
        found = gradients(step)
        for name, parameter in own.items():
            parameter.grad = found[name].clone() if name in found else None
        steps = [
            GroupStep(ours, float(rate), constants)
            for ours, rate, constants in zip(names, reader.rates(), reader.constants(), strict=True)
        ]
        optimizer.step()
        before = {name: t.clone() for name, t in parameters.items()}
        given = parameters
        parameters, memory = update(kind.__name__, steps, parameters, memory, found)
        torch.testing.assert_close(given, before, rtol=0, atol=0)  # nothing is written in place
        for name, parameter in own.items():
            # Rounding alone: torch.optim multiplies and adds in another order.
            torch.testing.assert_close(parameters[name], parameter.detach(), rtol=1e-12, atol=1e-14)
            for key, value in optimizer.state[parameter].items():
                if key == "step":
                    assert memory.counts[name] == int(value)
                elif value is not None:
                    # A gradient and its coupled decay, of the order of 0.1, may cancel to anything; their squares cannot.
                    least = 1e-18 if "sq" in key else 1e-16
                    torch.testing.assert_close(memory.slots[key][name], value, rtol=1e-12, atol=least)
    assert torch.equal(parameters["never"], start["never"])
    assert all("never" not in vector for vector in memory.slots.values())


_SGD = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.9, "dampening": 0.3},
    {"momentum": 0.9, "nesterov": True},
    {"weight_decay": 0.1},
    {"maximize": True, "weight_decay": 0.1, "momentum": 0.5},
    {"momentum": 0.8, "dampening": 0.5, "weight_decay": 0.1},
    {"momentum": 0.8, "nesterov": True, "weight_decay": 0.1, "maximize": True},
]
_ADAM = [
    {},
    {"betas": (0.5, 0.7), "eps": 1e-3},
    {"weight_decay": 0.1},
    {"amsgrad": True, "betas": (0.9, 0.6)},
    {"maximize": True, "weight_decay": 0.1},
    {"amsgrad": True, "maximize": True, "weight_decay": 0.3},
    {"betas": (0.0, 0.999)},
]
CASES = [(SGD, options) for options in _SGD] + [(kind, options) for kind in (Adam, AdamW) for options in _ADAM]


@pytest.mark.parametrize(("kind", "options"), CASES, ids=str)
@pytest.mark.parametrize("foreach", [False, True], ids=["one by one", "foreach"])
def test_twenty_steps_end_where_those_of_pytorch_do(kind: Any, options: dict[str, Any], foreach: bool) -> None:
    compare(kind, [options], lr=0.05, foreach=foreach)


def test_decoupled_decay_is_asked_for_by_adam_as_adamw_has_it() -> None:
    compare(Adam, [{}], lr=0.05, weight_decay=0.2, decoupled_weight_decay=True)


@pytest.mark.parametrize("kind", [SGD, Adam, AdamW])
def test_groups_have_rates_and_constants_of_their_own(kind: Any) -> None:
    own = {"momentum": 0.9} if kind is SGD else {"betas": (0.5, 0.9), "amsgrad": True}
    compare(kind, [{"lr": 0.1, "weight_decay": 0.1}, {"lr": 0.01, **own}])


@pytest.mark.parametrize("kind", [SGD, Adam, AdamW])
@pytest.mark.parametrize("groups", [1, 2])
def test_rates_and_constants_may_change_from_step_to_step(kind: Any, groups: int) -> None:
    compare(kind, [{}] * groups, changes=True, lr=0.1)


_few = {"rate": st.floats(1e-4, 0.5), "decay": st.floats(0, 0.5), "maximize": st.booleans()}


@settings(max_examples=15, deadline=None)
@given(momentum=st.floats(0, 0.99), dampening=st.floats(0, 1), nesterov=st.booleans(), **_few)
def test_sgd_of_any_constants(
    momentum: float, dampening: float, nesterov: bool, rate: float, decay: float, maximize: bool
) -> None:
    nesterov = nesterov and momentum > 0
    options = {"momentum": momentum, "dampening": 0 if nesterov else dampening, "nesterov": nesterov}
    compare(SGD, [options], lr=rate, weight_decay=decay, maximize=maximize)


@settings(max_examples=15, deadline=None)
@given(
    kind=st.sampled_from([Adam, AdamW]),
    betas=st.tuples(st.floats(0.1, 0.99), st.floats(0.1, 0.9999)),
    eps=st.floats(1e-10, 1e-2),
    amsgrad=st.booleans(),
    **_few,
)
def test_adam_of_any_constants(
    kind: Any, betas: tuple[float, float], eps: float, amsgrad: bool, rate: float, decay: float, maximize: bool
) -> None:
    compare(kind, [{}], lr=rate, weight_decay=decay, maximize=maximize, betas=betas, eps=eps, amsgrad=amsgrad)


def test_a_second_moment_of_zero_has_a_derivative_of_zero() -> None:
    """The root at 0 would give infinity, and the gradient that is 0 as well would make NaN of it."""
    constants = GroupReader(Adam([torch.nn.Parameter(torch.zeros(2))])).constants()[0]
    gradient = torch.tensor([0.0, 0.5], dtype=torch.float64, requires_grad=True)
    start = {"a": torch.ones(2, dtype=torch.float64)}
    moved, memory = update("Adam", [GroupStep(("a",), 0.1, constants)], start, Memory({}, {}), {"a": gradient})
    (found,) = torch.autograd.grad(moved["a"].sum() + memory.slots["exp_avg_sq"]["a"].sum(), gradient)
    # At 0 a step is -rate g / eps, at 0.5 it is saturated: -rate g / (|g| + eps).
    torch.testing.assert_close(found[0], torch.tensor(-0.1 / 1e-8, dtype=torch.float64))
    assert float(found[1]) == pytest.approx(2 * 0.001 * 0.5 - 0.1 * 1e-8 / 0.5**2, rel=1e-6)


@pytest.mark.parametrize("amsgrad", [False, True])
def test_saturation_changes_derivatives_only_and_only_where_the_second_moment_is_far_below_the_rest(
    amsgrad: bool,
) -> None:
    constants = GroupReader(Adam([torch.nn.Parameter(torch.zeros(2))], amsgrad=amsgrad, weight_decay=0.1)).constants()[
        0
    ]
    gradient = torch.tensor([1e-5, 0.5, -2.0, 0.0], dtype=torch.float64, requires_grad=True)
    start = {"a": torch.zeros(4, dtype=torch.float64)}
    steps = [GroupStep(("a",), 0.1, constants)]
    slopes, ends = [], []
    for saturation in (0.0, 1e-3):
        moved, memory = update("Adam", steps, start, Memory({}, {}), {"a": gradient}, saturation=saturation)
        slopes.append(torch.autograd.grad(moved["a"].sum(), gradient)[0])
        ends.append((moved["a"].detach(), memory.slots["exp_avg_sq"]["a"].detach()))
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=0)
    # The roots are 1e-5, 0.5, 2 and 0, and their quadratic mean is about 1.
    torch.testing.assert_close(slopes[1], slopes[0] * torch.tensor([0.0, 1.0, 1.0, 0.0]).double(), rtol=1e-12, atol=0)
    assert (slopes[0] != 0).all()
