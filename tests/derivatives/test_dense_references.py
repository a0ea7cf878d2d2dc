"""Every derivative against the dense gradient and the dense Hessian of every sample, in float64."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from cases import CASES, SAMPLES, Dense, make, random_direction
from diffin.derivatives import (
    Difference,
    Directional,
    Forward,
    Ghost,
    SampleSet,
    hessian_vector_product,
    mean_gradient,
)
from diffin.derivatives.selfcheck import reverse_over_reverse
from diffin.errors import DerivativeError
from diffin.probes import Probe
from diffin.task import PerSampleLoss, frozen
from diffin.tasks import FunctionTask

BACK_ENDS: list[tuple[Directional, float]] = [(Forward(), 1e-9), (Ghost(1e-4), 1e-5), (Difference(1e-3), 1e-3)]
IDS = [backend.name for backend, _ in BACK_ENDS]


@cache
def sample_hessians(name: str) -> list[torch.Tensor]:
    case = make(name)
    with frozen(case.task.model):
        dense = Dense(PerSampleLoss(case.task))
        return [dense.hessian(dense.sample(case.batch, i)) for i in range(SAMPLES)]


@pytest.mark.parametrize("name", CASES)
def test_mean_gradient_is_the_dense_gradient_however_it_is_batched(name: str) -> None:
    case = make(name)
    with frozen(case.task.model):
        loss = PerSampleLoss(case.task)
        dense = Dense(loss)
        batches = [dense.sample(case.batch, i) for i in range(SAMPLES)]
        streamed = mean_gradient(loss, SampleSet(lambda: batches, "the set"))
        torch.testing.assert_close(dense.flatten(streamed.gradient), dense.gradient(case.batch))
        assert streamed.count == SAMPLES
        assert streamed.value == pytest.approx(float(dense.mean_loss(case.batch)(dense.theta)))


@pytest.mark.parametrize(("method", "tolerance"), [("exact", 1e-9), ("difference", 1e-6)])
@pytest.mark.parametrize("name", CASES)
def test_hessian_vector_product_is_the_dense_product(name: str, method: str, tolerance: float) -> None:
    case = make(name)
    with frozen(case.task.model):
        loss = PerSampleLoss(case.task)
        dense = Dense(loss)
        v = random_direction(loss, 1)
        batches = [dense.sample(case.batch, i) for i in range(SAMPLES)]
        product = dense.flatten(hessian_vector_product(loss, SampleSet(lambda: batches, "the set"), v, method=method))  # type: ignore[arg-type]
    wanted = torch.stack(sample_hessians(name)).mean(dim=0) @ dense.flatten(v)
    assert float((product - wanted).norm() / wanted.norm()) < tolerance


@pytest.mark.parametrize(("backend", "tolerance"), BACK_ENDS, ids=IDS)
@pytest.mark.parametrize("name", CASES)
def test_first_derivatives_are_those_of_the_dense_gradients(name: str, backend: Directional, tolerance: float) -> None:
    case = make(name)
    with frozen(case.task.model):
        loss = PerSampleLoss(case.task)
        dense = Dense(loss)
        u = random_direction(loss, 1)
        measured = backend.prepare(loss, Probe(1.0, u))(case.batch)
        wanted = torch.stack([dense.gradient(dense.sample(case.batch, i)) @ dense.flatten(u) for i in range(SAMPLES)])
        losses = loss(loss.parameters, case.batch).detach()
    assert float((measured.derivatives - wanted).norm() / wanted.norm()) < tolerance
    torch.testing.assert_close(measured.losses, losses, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("backend", "tolerance"), BACK_ENDS, ids=IDS)
@pytest.mark.parametrize("name", CASES)
def test_second_order_probes_are_those_of_the_dense_hessians(name: str, backend: Directional, tolerance: float) -> None:
    case = make(name)
    with frozen(case.task.model):
        loss = PerSampleLoss(case.task)
        dense = Dense(loss)
        u, v, d = (random_direction(loss, seed) for seed in (1, 2, 3))
        measured = backend.prepare(loss, Probe(1.0, u, (v, d)))(case.batch).derivatives
        first = torch.stack([dense.gradient(dense.sample(case.batch, i)) @ dense.flatten(u) for i in range(SAMPLES)])
    reference = first + torch.stack([dense.flatten(v) @ h @ dense.flatten(d) for h in sample_hessians(name)])
    assert float((measured - reference).norm() / reference.norm()) < tolerance


@pytest.mark.parametrize("backend", [Forward(), Ghost(1e-4), Difference(1e-3)], ids=IDS)
@pytest.mark.parametrize("zero", ["u", "v", "d", "all"])
def test_a_zero_direction_contributes_nothing(backend: Directional, zero: str) -> None:
    case = make("mlp")
    with frozen(case.task.model):
        loss = PerSampleLoss(case.task)
        dense = Dense(loss)
        directions = {role: random_direction(loss, seed) for seed, role in enumerate("uvd")}
        for role in "uvd" if zero == "all" else zero:
            directions[role] = {name: torch.zeros_like(t) for name, t in directions[role].items()}
        probe = Probe(1.0, directions["u"], (directions["v"], directions["d"]))
        measured = backend.prepare(loss, probe)(case.batch).derivatives
        u, v, d = (dense.flatten(directions[role]) for role in "uvd")
        one = [dense.sample(case.batch, i) for i in range(SAMPLES)]
        wanted = torch.stack([dense.gradient(z) @ u + v @ dense.hessian(z) @ d for z in one])
    assert float((measured - wanted).norm()) <= 2e-3 * float(wanted.norm()) + 1e-12


@pytest.mark.parametrize("backend", [Forward(), Ghost(1e-4), Difference(1e-3)], ids=IDS)
def test_a_subset_of_parameters_moves_alone(backend: Directional) -> None:
    case = make("cnn with batch norm")
    with frozen(case.task.model):
        loss = PerSampleLoss(case.task, parameters=["7.*", "1.weight"])
        assert loss.names == ["1.weight", "7.weight", "7.bias"]
        dense = Dense(loss)
        u = random_direction(loss, 1)
        measured = backend.prepare(loss, Probe(1.0, u))(case.batch).derivatives
        wanted = torch.stack([dense.gradient(dense.sample(case.batch, i)) @ dense.flatten(u) for i in range(SAMPLES)])
    torch.testing.assert_close(measured, wanted, rtol=1e-4, atol=1e-6)


class Once(torch.autograd.Function):
    """A custom kernel that can be differentiated once."""

    @staticmethod
    def forward(ctx, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return torch.tanh(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, delta: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return delta * (1 - torch.tanh(x) ** 2)


def test_a_second_derivative_that_would_silently_lack_a_part_is_refused() -> None:
    model = torch.nn.Linear(5, 3, dtype=torch.float64)
    task = FunctionTask(model, lambda m, x: Once.apply(m(x)).square().sum(dim=1))
    x = torch.randn(4, 5, dtype=torch.float64)
    one = SampleSet(lambda: [x], "the set")
    with frozen(model):
        loss = PerSampleLoss(task)
        v = random_direction(loss, 0)
        with pytest.raises(DerivativeError, match="hessian='difference'"):
            hessian_vector_product(loss, one, v)
        smooth = PerSampleLoss(FunctionTask(model, lambda m, x: torch.tanh(m(x)).square().sum(dim=1)))
        wanted = hessian_vector_product(smooth, one, v)
        torch.testing.assert_close(
            hessian_vector_product(loss, one, v, method="difference"), wanted, rtol=1e-6, atol=1e-8
        )


def test_empty_and_nonfinite_sets_are_refused_by_name() -> None:
    case = make("mlp")
    inputs, targets = case.batch
    spoiled = (inputs.index_fill(0, torch.tensor([4]), float("nan")), targets)
    with frozen(case.task.model):
        loss = PerSampleLoss(case.task)
        v = random_direction(loss, 0)
        for take in (lambda s: mean_gradient(loss, s), lambda s: hessian_vector_product(loss, s, v)):
            with pytest.raises(DerivativeError, match=r"1 losses of the query are not finite \(sample 4 "):
                take(SampleSet(lambda: [spoiled], "the query"))
            with pytest.raises(DerivativeError, match="the query is empty"):
                take(SampleSet(list, "the query"))
        with pytest.raises(DerivativeError, match="pass 'exact', 'difference' or 'gauss-newton'"):
            hessian_vector_product(loss, SampleSet(lambda: [case.batch], "x"), v, method="cg")  # type: ignore[arg-type]


def test_samples_without_a_finite_loss_can_be_left_out(caplog: pytest.LogCaptureFixture) -> None:
    case = make("mlp")
    inputs, targets = case.batch
    spoiled = (inputs.index_fill(0, torch.tensor([4]), float("nan")), targets)
    kept = [0, 1, 2, 3, 5]
    with frozen(case.task.model):
        loss = PerSampleLoss(case.task)
        v = random_direction(loss, 0)
        whole = SampleSet(lambda: [(inputs[kept], targets[kept])], "the set")
        broken = SampleSet(lambda: [spoiled], "the set", skip_failed=True)
        torch.testing.assert_close(mean_gradient(loss, broken).gradient, mean_gradient(loss, whole).gradient)
        torch.testing.assert_close(hessian_vector_product(loss, broken, v), hessian_vector_product(loss, whole, v))
    assert "1 samples of the set have a loss that is not finite" in caplog.text


def test_half_precision_gradients_do_not_depend_on_the_batch_size() -> None:
    case = make("mlp").to(torch.bfloat16)
    batch = tuple(torch.cat([column] * 200) for column in case.batch)
    with frozen(case.task.model):
        loss = PerSampleLoss(case.task)
        pieces = [tuple(column[i : i + 4] for column in batch) for i in range(0, len(batch[0]), 4)]
        one = mean_gradient(loss, SampleSet(lambda: [batch], "the set")).gradient
        many = mean_gradient(loss, SampleSet(lambda: pieces, "the set")).gradient
        error = sum(float((one[n] - many[n]).norm()) ** 2 for n in one) ** 0.5
        assert error < 0.02 * sum(float(t.norm()) ** 2 for t in one.values()) ** 0.5
        with pytest.raises(DerivativeError, match=r"pass model\.float\(\)"):
            hessian_vector_product(
                loss, SampleSet(lambda: [batch], "x"), random_direction(loss, 0), method="difference"
            )


def test_layer_normalisation_is_right_however_it_is_called() -> None:
    """Nested forward mode of the fused kernel is silently wrong."""
    model = torch.nn.Sequential(torch.nn.Linear(5, 4)).double()
    task = FunctionTask(model, lambda m, x: torch.layer_norm(m(x), (4,)).pow(3).sum(dim=1))
    x = torch.randn(3, 5, dtype=torch.float64)
    with frozen(model):
        loss = PerSampleLoss(task)
        probe = Probe(1.0, random_direction(loss, 1), (random_direction(loss, 2), random_direction(loss, 3)))
        torch.testing.assert_close(Forward().prepare(loss, probe)(x).derivatives, reverse_over_reverse(loss, probe, x))
