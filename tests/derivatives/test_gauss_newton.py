"""Gauss-Newton products against the matrix, J' L J, formed in float64; and where they are the Hessian's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from diffin import vectors
from diffin.derivatives.gauss_newton import bears_gauss_newton, gauss_newton_product
from diffin.derivatives.gradient import SampleSet
from diffin.derivatives.hessian import hessian_vector_product
from diffin.errors import DerivativeError
from diffin.estimators.replay import query_adjoint
from diffin.rerun import Rerun, walk
from diffin.rerun.products import carry_back
from diffin.sources import open_source
from diffin.task import PerSampleLoss, Task, frozen
from diffin.tasks import Classification, FunctionTask, Regression
from repeatable import set_of
from retrained import Training, sgd


def kinked() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 3))
    return nn.Sequential(*layers).double()


def attentive() -> nn.Module:
    torch.manual_seed(0)

    class Attentive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True)
            self.head = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            pooled: Tensor = self.head(self.inner(x.flatten(1).unflatten(1, (6, 6))).mean(1))
            return pooled

    return Attentive().double()


def batches(count: int = 5, classes: bool = True) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 1, 6, 6, generator=generator, dtype=torch.float64)
    y = torch.arange(count) % 3 if classes else torch.randn(count, 3, generator=generator, dtype=torch.float64)
    return [(x[:2], y[:2]), (x[2:], y[2:])]


def dense(task: Task, of_outputs: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean over samples of J' L J, parameters in the order of the model; L of a loss written down again."""
    inputs, targets = batch
    parameters = dict(task.model.named_parameters())
    jacobian = jacrev(lambda p: functional_call(task.model, p, (inputs,)))(
        {n: t.detach() for n, t in parameters.items()}
    )
    rows = torch.cat([jacobian[name].flatten(2) for name in parameters], dim=2)
    total = torch.zeros(rows.shape[2], rows.shape[2], dtype=torch.float64)
    outputs = task.model(inputs).detach()
    for sample, row in enumerate(rows):
        one = targets[sample : sample + 1]
        curvature = torch.autograd.functional.hessian(lambda z, one=one: of_outputs(z[None], one), outputs[sample])
        total += row.T @ curvature @ row
    return total / len(rows)


WEIGHTS = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)


def weighted(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, weight=WEIGHTS, reduction="sum")


@pytest.mark.parametrize(
    ("build", "make", "of_outputs"),
    [
        (
            kinked,
            lambda m: Classification(m, label_smoothing=0.1),
            lambda z, y: F.cross_entropy(z, y, label_smoothing=0.1),
        ),
        (kinked, Regression, F.mse_loss),
        (attentive, lambda m: Classification(m, class_weights=WEIGHTS), weighted),
        (
            kinked,
            lambda m: FunctionTask(m, lambda n, b: (n(b[0]) + 2 * n(0.5 * b[0])).square().sum(1)),
            None,
        ),
    ],
    ids=["smoothed", "squared", "attention", "two calls"],
)
def test_products_are_those_of_the_dense_matrix(build: Any, make: Any, of_outputs: Any) -> None:
    task = make(build().eval())
    parts = batches(classes=isinstance(task, Classification))
    whole = (torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts]))
    with frozen(task.model):
        loss = PerSampleLoss(task)
        vector = {name: torch.randn_like(t) for name, t in loss.parameters.items()}
        found = gauss_newton_product(loss, SampleSet(lambda: parts, "the set"), vector)
        if of_outputs is None:

            class Both(nn.Module):
                def __init__(self, inner: nn.Module) -> None:
                    super().__init__()
                    self.inner = inner

                def forward(self, x: Tensor) -> Tensor:
                    outputs: Tensor = self.inner(x) + 2 * self.inner(0.5 * x)
                    return outputs

            matrix = dense(FunctionTask(Both(task.model), lambda n, b: n(b[0])), lambda z, y: z.square().sum(), whole)
        else:
            matrix = dense(task, of_outputs, whole)
        wanted = matrix @ torch.cat([vector[name].flatten() for name in loss.parameters])
    torch.testing.assert_close(torch.cat([found[name].flatten() for name in loss.parameters]), wanted)


def test_they_are_the_hessians_where_outputs_are_linear_in_the_parameters() -> None:
    task = Classification(nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).double())
    samples = SampleSet(batches, "the set")
    with frozen(task.model):
        loss = PerSampleLoss(task)
        vector = {name: torch.randn_like(t) for name, t in loss.parameters.items()}
        found, wanted = (hessian_vector_product(loss, samples, vector, method=m) for m in ("gauss-newton", "exact"))
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor)


def test_samples_without_a_finite_loss_are_left_out() -> None:
    parts = batches()
    broken = [
        (torch.cat([parts[0][0], parts[0][0][:1] * float("nan")]), torch.cat([parts[0][1], parts[0][1][:1]])),
        parts[1],
    ]
    task = Classification(kinked().eval())
    with frozen(task.model):
        loss = PerSampleLoss(task)
        vector = loss.parameters
        wanted = gauss_newton_product(loss, SampleSet(lambda: parts, "the set"), vector)
        found = gauss_newton_product(loss, SampleSet(lambda: broken, "the set", skip_failed=True), vector)
        with pytest.raises(DerivativeError, match="sample 2 of it"):
            gauss_newton_product(loss, SampleSet(lambda: broken, "the set"), vector)
    assert vectors.norm(vectors.add(found, wanted, -1.0)) < 1e-12 * vectors.norm(wanted)


def test_a_loss_that_sees_the_parameters_otherwise_is_refused() -> None:
    class Penalised(Classification):
        def losses(self, batch: Any) -> Tensor:
            return super().losses(batch) + sum(p.square().sum() for p in self.model.parameters())

    class Inner(Classification):
        def losses(self, batch: Any) -> Tensor:
            return F.cross_entropy(self.model[5](self.model[:5](batch[0])), batch[1], reduction="none")

    for kind in (Penalised, Inner):
        task = kind(kinked().eval())
        with frozen(task.model):
            loss = PerSampleLoss(task)
            assert not bears_gauss_newton(loss, batches()[0])
            with pytest.raises(DerivativeError, match="alone"):
                gauss_newton_product(loss, SampleSet(batches, "the set"), loss.parameters)


def test_a_model_that_returns_several_tensors_is_refused() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(36, 3).double()

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.inner(x.flatten(1)), x

    task = FunctionTask(Pair(), lambda m, b: F.cross_entropy(m(b[0])[0], b[1], reduction="none"))
    with frozen(task.model):
        loss = PerSampleLoss(task)
        with pytest.raises(DerivativeError, match="tuple"):
            gauss_newton_product(loss, SampleSet(batches, "the set"), loss.parameters)


def test_an_operation_without_forward_mode_is_noticed() -> None:
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return 2 * x

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return 2 * gradient

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(36, 3).double()

        def forward(self, x: Tensor) -> Tensor:
            doubled: Tensor = Doubled.apply(self.inner(x.flatten(1)))
            return doubled

    task = Classification(Model())
    with frozen(task.model):
        assert not bears_gauss_newton(PerSampleLoss(task), batches()[0])


def test_a_step_of_a_linear_model_is_carried_as_if_differentiated(tmp_path: Path) -> None:
    training = Training(lambda: nn.Linear(5, 3), sgd(momentum=0.9, weight_decay=0.01), micro_batches=2, clip=0.5)
    task, trajectory = training.recorded(tmp_path / "run")
    rerun = Rerun(task, trajectory, open_source(training.train))
    with rerun.entered():
        for stretch in walk.backwards(rerun, keep_gradients=True):
            if stretch.end.step == rerun.total_steps:
                adjoint = query_adjoint(rerun, stretch.end, set_of(training.query))
            after = stretch.end
            for state in stretch.states:
                pulled = rerun.pull_back(state, [adjoint])
                assert pulled is not None
                assert after.gradients is not None
                found, _ = carry_back(rerun, state, adjoint, after.gradients, hessian="gauss-newton")
                adjoint, after = pulled.adjoints[0], state
                for name, tensor in adjoint.parameters.items():
                    torch.testing.assert_close(found.parameters[name], tensor)
