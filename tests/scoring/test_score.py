"""From a recorded training run to scores, in one call."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

import diffin
from diffin.derivatives import Forward
from diffin.errors import DiffinError


@pytest.fixture
def trajectory(task, dataset, tmp_path) -> diffin.Trajectory:
    optimizer = torch.optim.SGD(task.model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(0)
    with diffin.Recorder(
        tmp_path / "run", task.model, optimizer, dataset_size=len(dataset), total_steps=12, checkpoints=3
    ) as recorder:
        for _ in range(12):
            indices = torch.randperm(len(dataset), generator=generator)[:9]
            inputs, targets = dataset[indices]
            optimizer.zero_grad()
            task.losses((inputs, targets)).mean().backward()
            optimizer.step()
            recorder.step(indices)
    return diffin.Trajectory.open(tmp_path / "run")


@pytest.fixture
def query() -> TensorDataset:
    generator = torch.Generator().manual_seed(8)
    inputs = torch.randn(10, 4, generator=generator, dtype=torch.float64)
    return TensorDataset(inputs, torch.randint(0, 3, (10,), generator=generator))


def test_tracin_scores_are_sums_of_rates_times_products_of_gradients(task, dataset, query, trajectory):
    scores = diffin.score(
        task, trajectory, dataset, query=query, estimator=diffin.TracIn(), derivatives=Forward(), progress=False
    )
    wanted = np.zeros(len(dataset))
    parameters = list(task.model.parameters())
    for checkpoint in trajectory.checkpoints:
        task.model.load_state_dict(checkpoint.state)
        asked = torch.autograd.grad(task.losses(query.tensors).mean(), parameters)
        for row in range(len(dataset)):
            one = tuple(tensor[row : row + 1] for tensor in dataset.tensors)
            own = torch.autograd.grad(task.losses(one).sum(), parameters)
            wanted[row] -= 0.1 * sum(float((a * b).sum()) for a, b in zip(asked, own, strict=True))
    # Up to a positive factor that all samples share: only the estimator knows its scale.
    factor = scores.influence @ wanted / (wanted @ wanted)
    assert factor > 0
    np.testing.assert_allclose(scores.influence, factor * wanted, rtol=1e-8, atol=1e-12 * factor)


def test_scores_and_probes_share_a_folder_that_resumes_or_is_replaced(task, dataset, query, trajectory, tmp_path):
    output = tmp_path / "out"

    def run(**changed):
        options = {"query": query, "derivatives": Forward(), "progress": False, "output": output} | changed
        return diffin.score(task, trajectory, dataset, **options)

    first = run()
    of_first = first.influence
    files = {file: file.stat().st_mtime_ns for file in output.glob("*.*")}
    assert (output / "probes" / "probes.json").exists()
    assert run().table.equals(first.table)
    assert {file: file.stat().st_mtime_ns for file in output.glob("*.*")} == files
    with pytest.raises(DiffinError, match="another run"):
        run(estimator=diffin.TracIn())
    second = run(estimator=diffin.TracIn(), resume=False)
    assert not np.allclose(second.influence, of_first)
    assert diffin.Scores.open(output).metadata["probes"]["digest"] == second.metadata["probes"]["digest"]


def test_samples_that_were_never_trained_on_can_be_scored(task, dataset, query, trajectory, tmp_path):
    probes = diffin.build_probes(
        task, trajectory, dataset, query=query, estimator=diffin.DiffIn(), output=tmp_path / "p", progress=False
    )
    scores = diffin.score_probes(task, probes, query, derivatives="forward", progress=False)
    assert len(scores) == len(query)
    assert np.isfinite(scores.influence).all()
