"""The same numbers on a GPU; skipped where there is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

import diffin
from cases import Case, make, random_direction
from diffin.batches import map_tensors
from diffin.derivatives import Difference, Directional, Forward, Ghost, SampleSet, hessian_vector_product
from diffin.probes import Probe
from diffin.task import PerSampleLoss, frozen
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
