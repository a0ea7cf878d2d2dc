"""The loss of the linearised network, against Jacobians written out; and what minimises it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from deletion_runs import clusters, network
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from diffin.actions.delete.linearised import linearised_gradient, linearised_losses
from diffin.actions.delete.minimise import minimise
from diffin.actions.delete.path import _Curvature, _Metric
from diffin.derivatives.gradient import SampleSet
from diffin.errors import DerivativeError
from diffin.task import PerSampleLoss, Task, frozen
from diffin.tasks import Classification


class WithLogits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, inputs: Tensor) -> Any:
        return SimpleNamespace(logits=self.inner(inputs))


def displacement(model: nn.Module) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {n: 0.5 * torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in model.named_parameters()}


@pytest.mark.parametrize("make", [network, lambda: nn.Sequential(network(), nn.LayerNorm(3).double())])
def test_losses_and_gradient_are_those_of_the_tangent_written_out(make: Any) -> None:
    model = make()
    inputs, labels = clusters(30, 1).tensors
    delta = displacement(model)
    parameters = {n: p.detach() for n, p in model.named_parameters()}
    outputs = functional_call(model, parameters, (inputs,))
    jacobian = jacrev(lambda p: functional_call(model, p, (inputs,)))(parameters)
    moving = {n: t.clone().requires_grad_() for n, t in delta.items()}
    moved = outputs + sum(torch.einsum("bc...,...->bc", jacobian[n].flatten(2), t.flatten()) for n, t in moving.items())
    expected = F.cross_entropy(moved, labels, reduction="none")
    weights = torch.linspace(1, 3, len(expected), dtype=torch.float64) / 60
    weighted = (weights * expected).sum()
    gradients = torch.autograd.grad(weighted, list(moving.values()))

    with frozen(model):
        loss = PerSampleLoss(Classification(model))
        found = linearised_losses(loss, delta, (inputs, labels))
        samples = SampleSet(lambda: [(inputs[:13], labels[:13]), (inputs[13:], labels[13:])], "the set")
        mean = linearised_gradient(loss, samples, weights, delta)
    torch.testing.assert_close(found, expected.detach())
    assert mean.value == pytest.approx(float(weighted.detach()))
    for name, gradient in zip(moving, gradients, strict=True):
        torch.testing.assert_close(mean.gradient[name], gradient)
    assert not model._forward_hooks


def test_an_output_with_logits_is_unpacked() -> None:
    model = WithLogits()
    batch = clusters(9, 1).tensors
    delta = displacement(model)
    with frozen(model):
        found = linearised_losses(PerSampleLoss(Classification(model)), delta, batch)
        inner = PerSampleLoss(Classification(model.inner))
        expected = linearised_losses(inner, {n.removeprefix("inner."): t for n, t in delta.items()}, batch)
    torch.testing.assert_close(found, expected)


def test_losses_that_go_around_the_model_are_refused() -> None:
    class Around(Task):
        def losses(self, batch: Any) -> Tensor:
            first = self.model.get_submodule("0")
            return first(batch[0]).square().sum(dim=1)

    model = network()
    with frozen(model), pytest.raises(DerivativeError, match=r"self\.model"):
        linearised_losses(PerSampleLoss(Around(model)), displacement(model), clusters(4, 1).tensors)
    assert not model._forward_hooks


def test_a_quadratic_is_minimised() -> None:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(12, 12, generator=generator, dtype=torch.float64)
    matrix, target = root @ root.T + torch.eye(12), torch.randn(12, generator=generator, dtype=torch.float64)

    def quadratic(x: dict[str, Tensor]) -> tuple[float, dict[str, Tensor]]:
        product = matrix @ x["x"]
        return float(x["x"] @ product / 2 - target @ x["x"]), {"x": product - target}

    found, _ = minimise(quadratic, {"x": torch.zeros(12, dtype=torch.float64)}, 60)
    torch.testing.assert_close(found["x"], torch.linalg.solve(matrix, target), rtol=1e-5, atol=1e-6)


def test_what_one_minimisation_saw_helps_the_next() -> None:
    generator = torch.Generator().manual_seed(1)
    root = torch.randn(40, 40, generator=generator, dtype=torch.float64)
    matrix = root @ root.T + torch.eye(40)
    evaluated = 0

    def quadratic(target: Tensor) -> Any:
        def function(x: dict[str, Tensor]) -> tuple[float, dict[str, Tensor]]:
            nonlocal evaluated
            evaluated += 1
            product = matrix @ x["x"]
            return float(x["x"] @ product / 2 - target @ x["x"]), {"x": product - target}

        return function

    targets = torch.randn(2, 40, generator=generator, dtype=torch.float64)
    start = {"x": torch.zeros(40, dtype=torch.float64)}
    _, pairs = minimise(quadratic(targets[0]), start, 60)
    for step, change in pairs:
        torch.testing.assert_close(matrix @ step["x"], change["x"])
    errors = []
    solution = torch.linalg.solve(matrix, targets[1])
    for known in ([], pairs):
        evaluated = 0
        found, _ = minimise(quadratic(targets[1]), start, 15, known)
        errors.append(float((found["x"] - solution).norm() / solution.norm()))
        assert evaluated <= 1 + 15 + 15 // 2
    assert errors[1] < 0.01 * errors[0]


def test_a_function_that_falls_without_end_is_left_alone() -> None:
    def falling(x: dict[str, Tensor]) -> tuple[float, dict[str, Tensor]]:
        return float(-x["x"].sum()), {"x": -torch.ones_like(x["x"])}

    found, pairs = minimise(falling, {"x": torch.zeros(3)}, 5)
    assert not found["x"].any()
    assert not pairs


def test_curvature_is_carried_from_one_metric_to_another() -> None:
    generator = torch.Generator().manual_seed(2)
    hessian = torch.diag(torch.rand(5, generator=generator, dtype=torch.float64) + 0.5)
    learned = _Curvature(3)

    def coordinates(scale: Tensor, length: float) -> tuple[_Metric, Tensor]:
        """A metric, and the Hessian of a stage in its coordinates."""
        whole = torch.diag(scale) @ hessian @ torch.diag(scale) + torch.eye(5, dtype=torch.float64) / length
        return _Metric({"x": scale}, length, {"x": 0.0}, {"x": 0.0}), whole

    first, whole = coordinates(torch.rand(5, generator=generator, dtype=torch.float64) + 0.1, 0.7)
    steps = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    learned.learn([({"x": step}, {"x": whole @ step}) for step in steps], first, 0.7)
    second, whole = coordinates(torch.rand(5, generator=generator, dtype=torch.float64) + 0.1, 3.0)
    seen = learned.taken(second, 3.0)
    assert len(seen) == 4
    for step, change in seen:
        torch.testing.assert_close(whole @ step["x"], change["x"])
