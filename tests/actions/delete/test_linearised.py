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

    found = minimise(quadratic, {"x": torch.zeros(12, dtype=torch.float64)}, 60)
    torch.testing.assert_close(found["x"], torch.linalg.solve(matrix, target), rtol=1e-5, atol=1e-6)
