"""Gradients of every sample, their norms and their products against dense autodiff of one sample at a time, in float64."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cases import CASES, SAMPLES, Case, make, random_direction
from diffin.batches import select
from diffin.derivatives.per_sample import PerSampleGradients
from diffin.task import PerSampleLoss, frozen
from diffin.tasks import FunctionTask

TOLERANCE = 1e-10


class Images(nn.Module):
    """Layers over pictures of 3 x 7 x 6, then the sum of squares of what comes out, weighted by a fixed random pattern."""

    def __init__(self, *layers: nn.Module, prepare: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.prepare = prepare

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(self.prepare(x)).reshape(len(x), -1)
        return (torch.tanh(y) * torch.linspace(-1, 2, y.shape[1], dtype=y.dtype)).sum(dim=1)


def _lines(x: Tensor) -> Tensor:
    return x.flatten(2)


def _solid(x: Tensor) -> Tensor:
    return x.reshape(len(x), 1, 3, 7, 6)


def _frames(x: Tensor) -> Tensor:
    return x.reshape(len(x) * 3, 1, 7, 6)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "conv1d": lambda: Images(nn.Conv1d(3, 4, 5, stride=3, padding=2, dilation=2), prepare=_lines),
    "conv2d": lambda: Images(nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 0)), nn.Conv2d(4, 2, 3)),
    "conv2d, groups and dilation": lambda: Images(
        nn.Conv2d(3, 6, 3, groups=3, dilation=2, padding=2), nn.Tanh(), nn.Conv2d(6, 4, 1, groups=2)
    ),
    "conv2d, same": lambda: Images(nn.Conv2d(3, 4, (4, 3), padding="same", bias=False)),
    "conv2d, valid": lambda: Images(nn.Conv2d(3, 4, 3, padding="valid", stride=4)),
    "conv2d, circular": lambda: Images(nn.Conv2d(3, 4, 3, padding=2, padding_mode="circular")),
    "conv2d, reflect": lambda: Images(nn.Conv2d(3, 4, 3, padding=(1, 2), padding_mode="reflect")),
    "conv2d, several pictures a sample": lambda: Images(
        nn.Conv2d(1, 4, 3, groups=1), nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 2, groups=2), prepare=_frames
    ),
    "conv3d": lambda: Images(
        nn.Conv3d(1, 4, (2, 3, 3), stride=(1, 2, 1), padding=(1, 0, 1), dilation=(1, 1, 2)), prepare=_solid
    ),
    "transposed conv1d": lambda: Images(
        nn.ConvTranspose1d(3, 4, 3, stride=2, padding=1, output_padding=1), prepare=_lines
    ),
    "transposed conv2d": lambda: Images(
        nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2, dilation=2)
    ),
    "transposed conv2d, long output padding": lambda: Images(
        nn.ConvTranspose2d(3, 2, 2, stride=1, dilation=3, output_padding=2)
    ),
    "transposed conv3d": lambda: Images(nn.ConvTranspose3d(1, 2, 2, stride=2), prepare=_solid),
    "batch norm 1d": lambda: Images(nn.Linear(126, 5), nn.BatchNorm1d(5), prepare=lambda x: x.flatten(1)),
    "batch norm 1d, lines": lambda: Images(nn.BatchNorm1d(3), nn.Tanh(), nn.Conv1d(3, 2, 2), prepare=_lines),
    "batch norm 3d": lambda: Images(nn.BatchNorm3d(1), prepare=_solid),
    "instance norm": lambda: Images(nn.Conv2d(3, 4, 2), nn.InstanceNorm2d(4, affine=True, track_running_stats=True)),
    "layer norm of two dimensions": lambda: Images(nn.LayerNorm([7, 6]), nn.LayerNorm(6, bias=False)),
    "rms norm": lambda: Images(nn.RMSNorm([7, 6]), nn.Linear(6, 2)),
    "linear over positions": lambda: Images(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 9, bias=False)),
    "linear, few positions": lambda: Images(
        nn.Linear(21, 40), nn.Tanh(), nn.Linear(40, 30), prepare=lambda x: x.reshape(len(x), 6, 21)
    ),
}


def _with_random_state(model: nn.Module) -> nn.Module:
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.data.uniform_(0.3, 1.0)
    return model


def _images(name: str) -> Case:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = _with_random_state(LAYERS[name]().double())
        task = FunctionTask(model, lambda model, batch: model(batch))
        return Case(task, torch.randn(SAMPLES, 3, 7, 6, dtype=torch.float64), None)


class Tokens(nn.Module):
    """An embedding with a padding row that every sample looks up several times, tied to the head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 5, padding_idx=0)
        self.head = nn.Linear(5, 9, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.embedding(tokens))).logsumexp(-1).square().mean(-1)


class Bare(nn.Module):
    """Parameters that belong to no layer, and one that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(4))
        self.layer = nn.Linear(4, 3)
        self.shift = nn.Parameter(torch.randn(3))
        self.unused = nn.Parameter(torch.randn(2))
        self.idle = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return (self.layer(torch.sin(x * self.scale)) + self.shift).square().sum(1)


class Branching(nn.Module):
    """A model that vmap cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4))
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        rows = [self.layer(row) @ self.weight if float(row.sum()) > 0 else (row * self.weight).cos().sum() for row in x]
        return torch.stack(rows)


class FlatOverTokens(nn.Module):
    """A layer on (tokens, batch, features): the first dimension is not the samples'."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.positions = nn.Embedding(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.positions(torch.arange(x.shape[1]))
        return self.layer(x.transpose(0, 1)).tanh().square().sum((0, 2))


def _other(model: nn.Module, batch: Any) -> Case:
    return Case(FunctionTask(model.double(), lambda model, batch: model(batch)), batch, None)


OTHERS: dict[str, Callable[[], Case]] = {
    "tied embedding": lambda: _other(Tokens(), torch.randint(9, (SAMPLES, 7)) * torch.randint(2, (SAMPLES, 7))),
    "bare": lambda: _other(Bare(), torch.randn(SAMPLES, 4, dtype=torch.float64)),
    "branching": lambda: _other(Branching(), torch.randn(SAMPLES, 4, dtype=torch.float64)),
    "not by sample": lambda: _other(FlatOverTokens(), torch.randn(SAMPLES, 5, 4, dtype=torch.float64)),
}


def case(name: str) -> Case:
    if name in LAYERS:
        return _images(name)
    if name in OTHERS:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return OTHERS[name]()
    return make(name)


def reference(loss: PerSampleLoss, batch: Any, at: dict[str, Tensor]) -> dict[str, Tensor]:
    """One sample at a time: the gradient of its loss by autograd."""
    each = []
    for index in range(SAMPLES):
        point = {name: t.detach().clone().requires_grad_() for name, t in at.items()}
        value = loss(point, select(batch, slice(index, index + 1)))[0]
        found = torch.autograd.grad(value, list(point.values()), allow_unused=True)
        each.append([torch.zeros_like(p) if g is None else g for p, g in zip(point.values(), found, strict=True)])
    return {name: torch.stack([one[i] for one in each]) for i, name in enumerate(at)}


ALL = (*LAYERS, *OTHERS, *CASES)


@pytest.mark.parametrize("name", ALL)
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
@pytest.mark.parametrize("name", ALL)
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
