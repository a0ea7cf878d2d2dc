"""Every kind of layer, by every way of measuring: against gradients and second derivatives of one sample at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from layer_kinds import KINDS, LAYERS, OTHERS, case
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from cases import SAMPLES, Dense, random_direction
from diffin import vectors
from diffin.across_probes import AcrossProbe, End
from diffin.derivatives import Difference, Directional, Forward, Ghost
from diffin.derivatives.across import OwnAcross
from diffin.derivatives.own import OwnDifference, OwnExact
from diffin.derivatives.per_sample import PerSampleGradients
from diffin.probes import Probe
from diffin.self_probes import SelfProbe
from diffin.task import PerSampleLoss, frozen
from diffin.vectors import Vector

BACK_ENDS: dict[str, tuple[Directional, float, float]] = {
    "forward": (Forward(), 1e-9, 1e-9),
    "ghost": (Ghost(1e-4), 1e-9, 1e-5),
    "difference": (Difference(1e-3), 1e-3, 2e-3),
}
"""With the errors that are allowed of first derivatives and of second-order probes."""

NEW = (*LAYERS, *OTHERS)
"""The others are those of :mod:`test_dense_references`."""

NOT_TWICE = ("transposed conv2d", "weight norm")
"""PyTorch has no second derivative of the first for one sample alone, and a wrong one of the second: the reference is a
difference of gradients."""

LOOKED_UP_PADDING = (
    "tied embedding",
    "positions, (1, T)",
    "positions, (1, T), odd",
    "positions, (T,)",
    "positions, (T,), two",
)
"""Training sees no gradient there, and the loss at other rows does: directions that move them are for `Ghost` alone."""


class At:
    """A case at its state, with what plain autodiff says of it."""

    def __init__(self, name: str) -> None:
        here = case(name)
        self.name, self.batch = name, here.batch
        self.loss = PerSampleLoss(here.task)
        self.dense = Dense(self.loss)
        self.model = here.task.model

    def direction(self, seed: int) -> Vector:
        return random_direction(self.loss, seed)

    def alone(self) -> list[Any]:
        return [self.dense.sample(self.batch, index) for index in range(SAMPLES)]

    def gradients(self, state: Vector | None = None) -> Tensor:
        """Float64[Tensor, "B P"]."""
        rows = []
        for one in self.alone():
            theta = self.dense.flatten(self.loss.parameters if state is None else state).clone().requires_grad_()
            with sdpa_kernel(SDPBackend.MATH):
                rows.append(torch.autograd.grad(self.dense.mean_loss(one)(theta), theta)[0])
        return torch.stack(rows)

    def curved(self, direction: Vector) -> Tensor:
        """Products of every sample's Hessian with it. Float64[Tensor, "B P"]"""
        if self.name in NOT_TWICE:
            ahead, behind = (vectors.add(self.loss.parameters, direction, sign * 1e-5) for sign in (1, -1))
            return (self.gradients(ahead) - self.gradients(behind)) / 2e-5
        along = self.dense.flatten(direction)
        with sdpa_kernel(SDPBackend.MATH):
            hvp = torch.autograd.functional.hvp
            return torch.stack([hvp(self.dense.mean_loss(one), self.dense.theta, along)[1] for one in self.alone()])


@cache
def at(name: str) -> At:
    return At(name)


def without_padding(model: nn.Module, direction: Vector) -> Vector:
    names = {id(p): name for name, p in model.named_parameters()}
    kept = {name: t.clone() for name, t in direction.items()}
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            kept[names[id(module.weight)]][module.padding_idx] = 0
    return kept


def close(found: Tensor, wanted: Tensor, tolerance: float) -> bool:
    return float((found - wanted).norm()) <= tolerance * float(wanted.norm())


@pytest.mark.parametrize("backend", BACK_ENDS)
@pytest.mark.parametrize("name", NEW)
def test_directional_derivatives_are_those_of_the_gradients(name: str, backend: str) -> None:
    here, (by, first, second) = at(name), BACK_ENDS[backend]
    twice = 1e-6 if name in NOT_TWICE else 0.0
    with frozen(here.model):
        u, v, d = (here.direction(seed) for seed in (1, 2, 3))
        if name in LOOKED_UP_PADDING:
            v, d = (without_padding(here.model, direction) for direction in (v, d))
            u = u if backend == "ghost" else without_padding(here.model, u)
        wanted = here.gradients() @ here.dense.flatten(u)
        measured = by.prepare(here.loss, Probe(1.0, u))(here.batch)
        assert close(measured.derivatives, wanted, first)
        assert close(measured.losses, here.loss(here.loss.parameters, here.batch).detach(), 1e-3)
        wanted = wanted + here.curved(d) @ here.dense.flatten(v)
        assert close(by.prepare(here.loss, Probe(1.0, u, (v, d)))(here.batch).derivatives, wanted, max(second, twice))


@pytest.mark.parametrize("name", KINDS)
def test_self_influence_of_one_state_is_that_of_the_gradients(name: str) -> None:
    """TracIn's, and Eq. 12's with two eigenpairs: by differences, and exactly."""
    here = at(name)
    with frozen(here.model):
        rates = {parameter: 0.1 * (1 + number) for number, parameter in enumerate(here.loss.parameters)}
        drift, *along = (without_padding(here.model, here.direction(seed)) for seed in (1, 2, 3))
        squares = ((0.7, along[0]), (-0.3, along[1]))
        g = here.gradients()
        e = here.dense.flatten({n: torch.full_like(t, rates[n]) for n, t in here.loss.parameters.items()})
        own = sum(value * (g @ here.dense.flatten(v)).square() for value, v in squares)
        first, second = (g * e * g).sum(1), (g * e * here.curved(drift)).sum(1) + own
        for probe, wanted, tolerance in (
            (SelfProbe(1.0, rates), first, 1e-9),
            (SelfProbe(1.0, rates, drift, squares), second, 1e-5),
        ):
            assert close(OwnDifference(1e-4).prepare_own(here.loss, probe)(here.batch).derivatives, wanted, tolerance)
            if name == "transposed conv2d":
                continue
            exact = OwnExact(lambda key: pytest.fail(str(key))).prepare_own(here.loss, probe)(here.batch)
            assert close(exact.derivatives, wanted, 1e-6 if name in NOT_TWICE else 1e-9)


@pytest.mark.parametrize("name", KINDS)
def test_self_influence_along_a_training_is_that_of_the_gradients(name: str) -> None:
    """`Unrolled`: gradients at a state times those at the end."""
    here = at(name)
    with frozen(here.model):
        end = vectors.add(here.loss.parameters, here.direction(5), 0.1)
        basis, directions = (
            {n: torch.stack([here.direction(seed)[n] for seed in seeds]) for n in end} for seeds in ((1, 2), (3, 4))
        )
        rest = here.direction(6)
        probe = AcrossProbe(1.0, End({**here.loss.rest, **end}, basis), rest, directions)
        found = OwnAcross().prepare_own(here.loss, probe)(here.batch).derivatives
        g, last, flat = here.gradients(), here.gradients(end), here.dense.flatten
        wanted = (g * flat(rest) * last).sum(1)
        for j in range(2):
            read, carried = (flat({n: t[j] for n, t in stack.items()}) for stack in (basis, directions))
            wanted = wanted + (last @ read) * (g @ carried)
    assert close(found, wanted, 1e-9)


NO_HOOK: dict[str, Callable[[str], bool]] = {
    "lstm": lambda name: name.startswith("recurrence"),
    "gru": lambda name: name.startswith("recurrence"),
    "attention": lambda name: name.startswith("attention"),
    "losses of zero first": lambda name: name.startswith("attention"),
    "weight norm": lambda name: "original" in name,
    "bare": lambda name: name in ("scale", "shift", "unused"),
    "branching": lambda name: name == "weight",
    "distances": lambda name: name == "bias.weight",
    "not by sample": lambda name: name.startswith("layer"),
}
"""What takes another pass; of all others nothing does."""


@pytest.mark.parametrize("name", NEW)
def test_what_no_hook_sees_is_said_once(name: str, caplog: pytest.LogCaptureFixture) -> None:
    here = at(name)
    left = [p for p in here.loss.parameters if name in NO_HOOK and NO_HOOK[name](p)]
    with frozen(here.model), caplog.at_level(logging.INFO):
        gradients = PerSampleGradients(here.loss)
        for _ in range(2):
            gradients.sums(here.batch)
    said = [r.getMessage() for r in caplog.records if "no hook sees" in r.message]
    assert said == ([f"no hook sees {len(left)} parameters, {left[0]} first; they cost another pass"] if left else [])


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_what_vmap_cannot_follow_is_said_once(name: str, caplog: pytest.LogCaptureFixture) -> None:
    here = at(name)
    with frozen(here.model), caplog.at_level(logging.INFO):
        gradients = PerSampleGradients(here.loss)
        for _ in range(2):
            dict(gradients.rows(here.batch)[1])
    assert caplog.text.count("go one by one") == 1


def test_the_adapter_alone_is_studied() -> None:
    assert set(at("adapter").loss.parameters) == {"a.weight", "b.weight"}
