"""The same numbers on a GPU; skipped where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import diffin
from cases import Case, make, random_direction
from contrastive_training import PairTraining, pairs
from diffin.batches import map_tensors
from diffin.derivatives import Difference, Directional, Forward, Ghost, SampleSet, choose, hessian_vector_product
from diffin.probes import CheckpointProbes, Probe, ProbeWriter
from diffin.task import PerSampleLoss, frozen
from diffin.tasks import Contrastive, TwoTowers
from training import record

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

MODELS = ["mlp", "cnn with batch norm", "transformer"]


def on_gpu(case: Case) -> Case:
    case.task.model.cuda()
    return Case(case.task, map_tensors(_moved, case.batch), map_tensors(_moved, case.query))


def _moved(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.cuda()


@pytest.mark.parametrize("backend", [Forward(), Ghost(1e-4), Difference(1e-3)], ids=lambda b: b.name)
@pytest.mark.parametrize("name", MODELS)
def test_derivatives_are_those_of_the_processor(name: str, backend: Directional) -> None:
    results = []
    for case in (make(name), on_gpu(make(name))):
        with frozen(case.task.model):
            loss = PerSampleLoss(case.task)
            u, v, d = (random_direction(loss, seed) for seed in (1, 2, 3))  # on the host, as read from disk
            batches = SampleSet(lambda case=case: [case.batch], "the set")
            product = hessian_vector_product(loss, batches, v)
            measured = backend.prepare(loss, Probe(1.0, u, (v, d)))(loss.to_device(case.batch))
            results.append((measured.derivatives.cpu(), product[loss.names[0]].cpu()))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "estimator",
    [
        diffin.DiffIn(batch_size=None),
        diffin.Unrolled(propagation="steps"),
        diffin.Unrolled(propagation="segments"),
        diffin.Replay(),
        diffin.InverseHessian(damping=1.0),
    ],
    ids=lambda estimator: repr(estimator)[:40],
)
def test_scores_are_those_of_the_processor(tmp_path: Path, estimator: diffin.Estimator) -> None:
    case = make("cnn with batch norm").to(torch.float32)
    train, query = TensorDataset(*case.batch), TensorDataset(*case.query)
    trajectory = record(tmp_path / "run", case.task, train)
    settings = {"query": query, "estimator": estimator, "derivatives": "forward"}
    wanted = diffin.score(case.task, trajectory, train, progress=False, **settings)
    case.task.model.cuda()
    scores = diffin.score(case.task, trajectory, train, progress=False, **settings)
    assert scores.metadata["device"].startswith("cuda")
    np.testing.assert_allclose(scores.influence, wanted.influence, rtol=1e-3)


def in_float32(dataset: TensorDataset) -> TensorDataset:
    images, texts = dataset.tensors
    return TensorDataset(images.float(), texts)


@pytest.mark.parametrize(("derivatives", "error"), [("forward", 1e-4), ("difference", 1e-2)])
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_scores_of_pairs_are_those_of_the_processor_in_float64(
    tmp_path: Path, kind: str, derivatives: Any, error: float
) -> None:
    training = PairTraining(kind)
    task, trajectory = training.recorded(tmp_path / "run")
    estimator = diffin.Unrolled(propagation="segments", hessian="exact")
    settings = {"estimator": estimator, "progress": False}
    wanted = diffin.score(
        task, trajectory, training.train, query=training.query, derivatives="forward", **settings
    ).influence
    task.model.float().cuda()
    train, query = in_float32(training.train), in_float32(training.query)
    scores = diffin.score(task, trajectory, train, query=query, derivatives=derivatives, **settings)
    assert scores.metadata["device"].startswith("cuda")
    assert np.linalg.norm(scores.influence - wanted) < error * np.linalg.norm(wanted)


def test_pairs_under_autocast_are_checked_against_full_precision(tmp_path: Path) -> None:
    torch.manual_seed(0)
    images = nn.Sequential(nn.Linear(5, 32), nn.GELU(), nn.Linear(32, 16))
    texts = nn.Sequential(nn.Embedding(11, 16), nn.Flatten(), nn.Linear(48, 16))
    task = Contrastive(TwoTowers(images, texts).cuda(), group_size=32, autocast=torch.bfloat16)
    batch = in_float32(pairs(32, 1)).tensors
    with frozen(task.model):
        loss = PerSampleLoss(task)
        probe = Probe(1.0, random_direction(loss, 5))
        writer = ProbeWriter(tmp_path / "probes", loss.names, {})
        writer.write(CheckpointProbes(0, {name: t.cpu() for name, t in loss.parameters.items()}, (probe,)))
    choice = choose(task, writer.finish([0]), batch)
    error = choice.report.error
    assert choice.report.chosen == "forward"
    assert error is not None
    assert 1e-4 < error < 0.05, "computing in 8 bits shows, and is no more than that"
