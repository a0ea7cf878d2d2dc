"""Contrastive losses, their effects, and what follows from them, against loops over pairs in float64."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import diffin
from contrastive_training import PairTraining, objective, pairs, towers
from diffin.derivatives import Difference, Forward, Ghost, hessian_vector_product
from diffin.derivatives.gauss_newton import gauss_newton_product
from diffin.derivatives.gradient import SampleSet
from diffin.derivatives.per_sample import PerSampleGradients
from diffin.derivatives.selfcheck import choose, reverse_over_reverse
from diffin.errors import DerivativeError, TaskError
from diffin.loss_checks import check_losses
from diffin.probes import CheckpointProbes, Probe, ProbeSet, ProbeWriter
from diffin.task import Outcome, PerSampleLoss, frozen
from diffin.tasks import Classification, Contrastive, TwoTowers
from diffin.vectors import Vector

KINDS = ("clip", "siglip")
SIZE = 8


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def batch_of(count: int = SIZE) -> tuple[Tensor, Tensor]:
    images, texts = pairs(count).tensors
    return images, texts


def task_of(kind: str, **options: Any) -> Contrastive:
    torch.manual_seed(0)
    return Contrastive(towers(bias=-1.5 if kind == "siglip" else None).double(), loss=kind, group_size=SIZE, **options)


def noise(task: Contrastive, seed: int) -> Vector:
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(p.shape, generator=generator).to(p) for n, p in task.model.named_parameters()}


def dense_effects(task: Contrastive, images: Tensor, texts: Tensor) -> Tensor:
    """The derivative of the loops by their weights, at 1, with its graph."""
    weights = torch.ones(len(images), dtype=torch.float64, requires_grad=True)
    total = objective(task.loss, task.model, images, texts, weights)
    return torch.autograd.grad(total, weights, create_graph=True)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_of_the_losses_is_the_objective_and_weights_do_what_loops_say(kind: str) -> None:
    task, (images, texts) = task_of(kind), batch_of()
    ones = torch.ones(SIZE, dtype=torch.float64)
    wanted = objective(kind, task.model, images, texts, ones)
    torch.testing.assert_close(task.losses((images, texts)).sum(), wanted)
    torch.testing.assert_close(task.weighted((images, texts), ones), wanted)
    for weights in (torch.rand(SIZE).double() + 0.5, torch.tensor([1.0, 0, 0.3, 0, 2, 1, 0, 1]), torch.zeros(SIZE)):
        found = task.weighted((images, texts), weights)
        torch.testing.assert_close(found, objective(kind, task.model, images, texts, weights.double()))
    gone = torch.tensor([1.0, 0, 1, 1, 0, 1, 1, 1])
    rest = gone.nonzero().flatten()
    torch.testing.assert_close(
        task.weighted((images, texts), gone), task.losses((images[rest], texts[rest])).sum()
    )  # neither positives nor negatives


@pytest.mark.parametrize("kind", KINDS)
def test_effects_are_the_derivative_by_the_weights(kind: str) -> None:
    task, (images, texts) = task_of(kind), batch_of()
    torch.testing.assert_close(task.effects((images, texts)), dense_effects(task, images, texts))
    weights = torch.rand(SIZE).double() + 0.5
    assert torch.autograd.gradcheck(lambda w: task.weighted((images, texts), w), weights.requires_grad_())
    # What a pair adds as a negative counts once more for both of its sides.
    losses, effects = (f((images, texts)).sum() for f in (task.losses, task.effects))
    own = objective(kind, task.model, images[:1], texts[:1], torch.ones(1)) if kind == "siglip" else None
    assert effects > losses
    assert own is None or effects < 2 * losses


@pytest.mark.parametrize("kind", KINDS)
def test_similarities_far_from_each_other_overflow_nowhere(kind: str) -> None:
    task, batch = task_of(kind), batch_of()
    with torch.no_grad():
        task.model.logit_scale.fill_(7.0)  # similarities up to 1100
    check_losses(task, batch)
    weights = torch.ones(SIZE, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(task.weighted(batch, weights), weights)
    torch.testing.assert_close(task.effects(batch), found)
    gradients = torch.autograd.grad(task.weighted(batch, torch.arange(SIZE) % 2.0), list(task.model.parameters()))
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mixed", [False, True])
def test_forward_difference_and_reverse_measure_the_derivative_of_the_effects(kind: str, mixed: bool) -> None:
    task, batch = task_of(kind), batch_of()
    u, v, d = (noise(task, seed) for seed in (1, 2, 3))
    parameters, names = list(task.model.parameters()), [n for n, _ in task.model.named_parameters()]
    wanted = []
    for effect in dense_effects(task, *batch):
        gradient = torch.autograd.grad(effect, parameters, create_graph=True)
        value = sum((g * u[n]).sum() for n, g in zip(names, gradient, strict=True))
        if mixed:
            along = sum((g * v[n]).sum() for n, g in zip(names, gradient, strict=True))
            second = torch.autograd.grad(along, parameters, retain_graph=True, allow_unused=True)
            value = value + sum((g * d[n]).sum() for n, g in zip(names, second, strict=True) if g is not None)
        wanted.append(value)
    dense = torch.stack(wanted).detach()
    probe = Probe(1.0, u, (v, d) if mixed else None)
    with frozen(task.model):
        loss = PerSampleLoss(task)
        forward, difference = (b.prepare(loss, probe)(batch) for b in (Forward(), Difference(1e-5)))
        exact = reverse_over_reverse(loss, probe, batch)
    torch.testing.assert_close(forward.derivatives, dense, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(exact, dense, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(difference.derivatives, dense, rtol=1e-4, atol=1e-4 * float(dense.norm()))
    torch.testing.assert_close(forward.losses, task.losses(batch).detach())
    torch.testing.assert_close(difference.losses, task.losses(batch).detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_pair_that_is_not_finite_takes_no_other_pair_with_it(kind: str) -> None:
    task, (images, texts) = task_of(kind), batch_of()
    rest = torch.tensor([0, 1, 2, 4, 5, 6, 7])
    broken = images.clone()
    broken[3] = torch.nan
    for function in (task.losses, task.effects):
        found = function((broken, texts))
        assert torch.isnan(found[3])
        torch.testing.assert_close(found[rest], function((images[rest], texts[rest])))
    with frozen(task.model):
        loss = PerSampleLoss(task)
        measured = Forward().prepare(loss, Probe(1.0, noise(task, 1)))((broken, texts))
        alone = Forward().prepare(loss, Probe(1.0, noise(task, 1)))((images[rest], texts[rest]))
    assert torch.isnan(measured.losses).nonzero().flatten().tolist() == [3]
    torch.testing.assert_close(measured.derivatives[rest], alone.derivatives)


def test_the_rank_of_the_own_text_is_the_prediction() -> None:
    task, (images, texts) = task_of("clip"), batch_of(4)
    task.model.image_tower, task.model.text_tower = nn.Identity(), nn.Identity()
    eye = torch.eye(4, dtype=torch.float64)
    assert task.predictions((eye, eye)) == ["own text at place 1 of 4"] * 4
    other = torch.stack([eye[1] + eye[0] / 2, eye[1], eye[2], eye[3]])
    assert task.predictions((other, eye))[0] == "own text at place 2 of 4"
    assert task.labels((images, texts)) is None


class Declared(Contrastive):
    """Says that it is coupled and has the effects of a loss that is not."""

    def outcome(self, batch: Any) -> Outcome:
        return Outcome(super().outcome(batch).losses)


class WithoutNegatives(Contrastive):
    """Its effects lack what a pair does as a negative."""

    def outcome(self, batch: Any) -> Outcome:
        found = super().outcome(batch)

        class Other(Outcome):
            def weighted(self, weights: Tensor) -> Tensor:
                return found.weighted(weights)

        return Other(found.losses)


def test_a_coupled_task_is_checked_for_what_it_says_of_weights() -> None:
    model, batch = towers().double(), batch_of()
    for kind in KINDS:
        check_losses(task_of(kind), batch)
        check_losses(task_of(kind), batch_of(1))
    with pytest.raises(TaskError, match="a sample of weight 0 must be in no loss"):
        check_losses(Declared(model, group_size=SIZE), batch)
    with pytest.raises(TaskError, match="effects differ from the derivative"):
        check_losses(WithoutNegatives(model, group_size=SIZE), batch)
    task = task_of("clip")
    task.group_size = None
    with pytest.raises(TaskError, match=r"diffin\.tasks\.Contrastive"):
        check_losses(task, batch)
    task.group_size = 1
    with pytest.raises(TaskError, match="2 or more"):
        check_losses(task, batch)


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({"loss": "triplet"}, "'clip' or 'siglip'"),
        ({"group_size": 1}, "2 or more"),
        ({"autocast": torch.float16}, "bfloat16"),
        ({"seed": -1}, "0 or more"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(options: dict[str, Any], advice: str) -> None:
    with pytest.raises(TaskError, match=advice):
        Contrastive(towers(), **options)


def test_batches_and_outputs_that_are_no_pairs_are_refused() -> None:
    task, (images, texts) = task_of("clip"), batch_of()
    torch.testing.assert_close(
        task.losses({"images": images, "texts": texts, "name": ["x"]}), task.losses((images, texts))
    )
    torch.testing.assert_close(task.losses({"image": images, "text": texts}), task.losses((images, texts)))
    for batch, advice in [
        ((images, texts, texts), "indices"),
        (images, "a Tensor"),
        ({"images": images}, "name them as the arguments"),
    ]:
        with pytest.raises(TaskError, match=advice):
            task.losses(batch)
    with pytest.raises(TaskError, match="TwoTowers"):
        Contrastive(nn.Bilinear(5, 3, 2).double()).losses((images, texts.double()))
    with pytest.raises(TaskError, match="one text for each image"):
        task.losses((images, texts[:3]))
    with pytest.raises(TaskError, match="above 0"):
        TwoTowers(nn.Identity(), nn.Identity(), scale=0)


def test_what_takes_samples_apart_refuses_coupled_losses(tmp_path: Path) -> None:
    training = PairTraining()
    task, trajectory = training.recorded(tmp_path / "run")
    loss = PerSampleLoss(task)
    for ask in (
        lambda: Ghost(1e-3).prepare(loss, Probe(1.0, noise(task, 1))),
        lambda: PerSampleGradients(loss),
        lambda: diffin.self_influence(task, trajectory, training.train, progress=False),
    ):
        with pytest.raises(TaskError, match="coupled"):
            ask()


@pytest.mark.parametrize("kind", KINDS)
def test_products_with_the_curvature_are_those_of_the_coupled_objective(kind: str) -> None:
    task, batch = task_of(kind), batch_of(5)
    vector = noise(task, 1)
    shapes = [(n, p.shape) for n, p in task.model.named_parameters()]
    theta = torch.cat([p.detach().flatten() for p in task.model.parameters()])
    flat = torch.cat([vector[n].flatten() for n, _ in shapes])

    def features(values: Tensor) -> tuple[Tensor, ...]:
        pieces = torch.split(values, [shape.numel() for _, shape in shapes])
        named = {n: piece.reshape(shape) for (n, shape), piece in zip(shapes, pieces, strict=True)}
        found: tuple[Tensor, ...] = torch.func.functional_call(task.model, named, batch)
        return found

    def similarities(values: Tensor) -> Tensor:
        images, texts, scale, *bias = features(values)
        return scale * images @ texts.T + (bias[0] if bias else 0)

    def of_similarities(scaled: Tensor) -> Tensor:
        given = (scaled, torch.eye(5, dtype=torch.float64), torch.tensor(1.0))
        return objective(kind, lambda *_: given, *batch, torch.ones(5)) / 5  # type: ignore[arg-type]

    hessian = torch.autograd.functional.hessian(lambda values: of_similarities(similarities(values)), theta)
    jacobian = torch.autograd.functional.jacobian(similarities, theta).reshape(25, -1)
    inner = torch.autograd.functional.hessian(of_similarities, similarities(theta)).reshape(25, 25)
    samples = SampleSet(lambda: (batch,), "the batch")
    with frozen(task.model):
        loss = PerSampleLoss(task)
        exact = hessian_vector_product(loss, samples, vector)
        gauss_newton = gauss_newton_product(loss, samples, vector)
    for found, wanted in ((exact, hessian @ flat), (gauss_newton, jacobian.T @ (inner @ (jacobian @ flat)))):
        torch.testing.assert_close(torch.cat([found[n].flatten() for n, _ in shapes]), wanted)


def random_probes(task: Contrastive, path: Path) -> ProbeSet:
    writer = ProbeWriter(path, [name for name, _ in task.model.named_parameters()], {})
    state = {name: t.detach() for name, t in task.model.named_parameters()}
    writer.write(CheckpointProbes(0, state, (Probe(1.0, noise(task, 5)),)))
    return writer.finish([0])


def test_differences_under_autocast_are_refused_and_forward_mode_is_taken(tmp_path: Path) -> None:
    torch.manual_seed(0)
    images = nn.Sequential(nn.Linear(5, 32), nn.GELU(), nn.Linear(32, 16))
    texts = nn.Sequential(nn.Embedding(11, 16), nn.Flatten(), nn.Linear(48, 16))
    task = Contrastive(TwoTowers(images, texts), group_size=32, autocast=torch.bfloat16)
    batch = tuple(t.float() if t.is_floating_point() else t for t in pairs(32, 1).tensors)
    probes = random_probes(task, tmp_path)
    choice = choose(task, probes, batch)
    found = {entry.name: entry for entry in choice.report.back_ends}
    assert choice.report.chosen == "forward"
    assert task.autocast == torch.bfloat16  # the exact answer was taken without, and it is put back
    assert "autocast" in (found["difference"].failure or "")
    assert "coupled" in (found["ghost"].failure or "")
    # The error is that of computing in 8 bits, because the exact answer was taken in float32.
    error = found["forward"].error
    assert error is not None
    assert 1e-4 < error < 0.05
    with pytest.raises(DerivativeError, match="too coarse to take differences"):
        choose(task, probes, batch, "difference")
    plain = Contrastive(task.model, group_size=32)
    assert choose(plain, probes, batch).report.chosen == "difference"
    exact = choose(plain, probes, batch, "forward").report.error
    assert exact is not None
    assert exact < 1e-4


def test_a_loss_that_is_not_coupled_has_its_losses_for_effects() -> None:
    task = Classification(nn.Linear(5, 3))
    batch = (torch.randn(4, 5), torch.tensor([0, 1, 2, 0]))
    weights = torch.tensor([1.0, 0, 2, 1])
    assert task.group_size is None
    torch.testing.assert_close(task.effects(batch), task.losses(batch))
    torch.testing.assert_close(task.weighted(batch, weights), (task.losses(batch) * weights).sum())
