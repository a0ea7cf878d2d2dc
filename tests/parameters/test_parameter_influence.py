"""What the change of the parameters by a set of samples must do, whatever the estimator; and its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dual import SAMPLES, small
from safetensors.torch import save_file
from torch.utils.data import Dataset, Subset, TensorDataset

import diffin
from diffin import vectors
from diffin.errors import DatasetError, DerivativeError, DiffinError
from diffin.estimators import Estimator
from diffin.parameters import ParameterInfluence, parameter_influence
from diffin.task import Task
from repeatable import Tied, two_groups
from retrained import Training, cnn, sgd

ESTIMATORS: dict[str, Estimator] = {
    "tracin": diffin.TracIn(),
    "diffin": diffin.DiffIn(batch_size=10),
    "inverse hessian": diffin.InverseHessian(damping=1.0, tolerance=1e-12),
    "segments": diffin.Unrolled(propagation="segments", rank=500, hessian="exact"),
    "steps": diffin.Unrolled(propagation="steps", states=4, hessian="exact"),
    "replay": diffin.Replay(),
}


@pytest.fixture(scope="module")
def training() -> Training:
    return Training(small, two_groups(torch.optim.SGD, {"lr": 0.2}, {"lr": 0.1}), checkpoints=[0, 6, 13])


@pytest.fixture(scope="module")
def recorded(training: Training, tmp_path_factory: pytest.TempPathFactory) -> tuple[Task, diffin.Trajectory]:
    return training.recorded(tmp_path_factory.mktemp("recorded") / "run")


def influence(of: Any, training: Training, samples: Any = SAMPLES, **options: Any) -> ParameterInfluence:
    task, trajectory = of
    return parameter_influence(task, trajectory, training.train, samples, **{"progress": False, **options})


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_set_moves_the_parameters_as_its_samples_do_together(name: str, training: Training, recorded: Any) -> None:
    whole = influence(recorded, training, estimator=ESTIMATORS[name])
    total = vectors.zeros_like(whole.vector)
    for sample in SAMPLES:
        total = vectors.add(total, influence(recorded, training, [sample], estimator=ESTIMATORS[name]).vector)
    # Segments by Lanczos, which breaks off where what is left of the curvature is a millionth of it.
    tolerance = 1e-5 if name == "segments" else 1e-9
    assert vectors.norm(vectors.add(whole.vector, total, -1.0)) < tolerance * whole.norm


@pytest.mark.parametrize("name", ESTIMATORS)
def test_batch_size_and_order_of_the_samples_do_not_matter(name: str, training: Training, recorded: Any) -> None:
    whole = influence(recorded, training, estimator=ESTIMATORS[name])
    other = influence(recorded, training, np.array(SAMPLES[::-1]), estimator=ESTIMATORS[name], batch_size=3)
    tolerance = 1e-5 if name == "segments" else 1e-9
    assert vectors.norm(vectors.add(whole.vector, other.vector, -1.0)) < tolerance * whole.norm
    assert whole.samples.tolist() == other.samples.tolist() == SAMPLES


def test_the_stochastic_recursion_solves_for_the_same(training: Training, recorded: Any) -> None:
    """With all samples in every batch it is deterministic, and converges as (1 - damping / scale)^iterations."""
    found, wanted = (
        influence(recorded, training, estimator=diffin.InverseHessian(damping=5.0, tolerance=1e-12, **settings))
        for settings in ({"solver": "lissa", "samples": 24, "iterations": 60}, {"solver": "cg"})
    )
    assert vectors.norm(vectors.add(found.vector, wanted.vector, -1.0)) < 1e-6 * wanted.norm


def test_removing_samples_moves_the_parameters_by_minus_the_vector(training: Training, recorded: Any) -> None:
    """To first order: a twentieth of their weight."""
    found = influence(recorded, training, estimator=diffin.Replay())
    weights = torch.ones(24, dtype=torch.float64)
    weights[SAMPLES] = 0.95
    with_all, without = (dict(training.run(w).named_parameters()) for w in (None, weights))
    wanted = {name: 20 * (p - without[name]).detach() for name, p in with_all.items()}
    assert vectors.norm(vectors.add(found.vector, wanted, -1.0)) < 0.05 * found.norm
    for name, tensor in found.state.items():
        torch.testing.assert_close(tensor, with_all[name].detach())


def test_what_is_trained_on_helps_itself(training: Training, recorded: Any) -> None:
    task, _ = recorded
    own = TensorDataset(*(column[SAMPLES] for column in training.train.tensors))
    for name in ("segments", "steps", "replay", "tracin", "inverse hessian"):
        assert influence(recorded, training, estimator=ESTIMATORS[name]).on(task, own) < 0


def test_the_default_is_the_most_accurate_estimator(training: Training, recorded: Any) -> None:
    found = influence(recorded, training)
    assert found.metadata["estimator"]["name"] == "unrolled"
    assert found.metadata["estimator"]["propagation"] == "steps"


@pytest.mark.parametrize("build", [small, Tied, cnn], ids=["mlp", "tied", "batch norm"])
def test_what_is_saved_is_what_is_opened(build: Any, tmp_path: Path) -> None:
    training = Training(build, sgd(momentum=0.5), shape=(1, 6, 6) if build is cnn else (5,))
    task, trajectory = training.recorded(tmp_path / "run")
    found = influence((task, trajectory), training, estimator=diffin.Replay())
    path = tmp_path / "moved" / "influence.safetensors"
    found.save(path)
    opened = ParameterInfluence.open(path)
    for part in ("vector", "buffers", "state"):
        assert sorted(getattr(opened, part)) == sorted(getattr(found, part))
        for name, tensor in getattr(found, part).items():
            assert torch.equal(getattr(opened, part)[name], tensor)
    assert opened.samples.tolist() == SAMPLES
    assert opened.metadata == found.metadata
    assert opened.on(task, training.query) == found.on(task, training.query)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DiffinError, match="does not exist"):
        ParameterInfluence.open(tmp_path / "nothing.safetensors")
    save_file({"a": torch.ones(1)}, str(tmp_path / "other.safetensors"))
    (tmp_path / "torn.safetensors").write_bytes(b"123")
    for name in ("other", "torn"):
        with pytest.raises(DiffinError, match="holds no parameter influence"):
            ParameterInfluence.open(tmp_path / f"{name}.safetensors")


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        ([], "samples is empty"),
        ([3, 3], "comes twice"),
        ([24], "index 24 is not in a dataset of 24 samples"),
        ([-1], "index -1"),
        ([0.5], "whole numbers"),
    ],
    ids=str,
)
def test_samples_that_are_none_are_refused(samples: Any, words: str, training: Training, recorded: Any) -> None:
    with pytest.raises(DatasetError, match=words):
        influence(recorded, training, samples)


def test_what_cannot_be_asked_is_refused(training: Training, recorded: Any) -> None:
    task, trajectory = recorded
    with pytest.raises(DiffinError, match="MoSo differs from TracIn in what is asked about"):
        influence(recorded, training, estimator=diffin.MoSo())
    with pytest.raises(DiffinError, match="Replay follows the whole training"):
        influence(recorded, training, estimator=diffin.Replay(), parameters="0.*")
    with pytest.raises(DiffinError, match="pass an instance"):
        influence(recorded, training, estimator=diffin.TracIn)
    with pytest.raises(DiffinError, match=r"diffin.Trajectory.open"):
        influence((task, str(trajectory.path)), training)
    with pytest.raises(DatasetError, match="query=None"):
        influence(recorded, training, estimator=diffin.TracIn()).on(task, None)


def test_a_query_of_another_model_is_refused(training: Training, recorded: Any) -> None:
    found = influence(recorded, training, estimator=diffin.TracIn(), parameters="2.*")
    task = diffin.tasks.Classification(training.model())
    next(p for name, p in task.model.named_parameters() if name == "2.bias").requires_grad_(False)
    with pytest.raises(DiffinError, match=r"has no trainable parameter '2\.bias'"):
        found.on(task, training.query)


def test_a_sample_without_a_finite_loss_is_refused(training: Training, recorded: Any) -> None:
    inputs, targets = (column.clone() for column in training.train.tensors)
    inputs[SAMPLES[1]] = torch.inf
    task, trajectory = recorded
    with pytest.raises(DerivativeError, match="1 losses of the samples are not finite"):
        parameter_influence(
            task, trajectory, TensorDataset(inputs, targets), SAMPLES, estimator=diffin.TracIn(), progress=False
        )


class Loaded(Dataset[Any]):
    """Samples as dictionaries, which need a collate function of their own."""

    def __init__(self, data: TensorDataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        return {"x": self.data[index][0], "y": self.data[index][1]}


@pytest.mark.parametrize("name", ["tracin", "steps"])
def test_data_is_collated_as_asked(name: str, training: Training, recorded: Any) -> None:
    task, trajectory = recorded

    def collate(samples: list[Any]) -> Any:
        return torch.stack([s["x"] for s in samples]), torch.stack([s["y"] for s in samples])

    found = parameter_influence(
        task, trajectory, Loaded(training.train), SAMPLES, estimator=ESTIMATORS[name], collate=collate, progress=False
    )
    plain = influence(recorded, training, estimator=ESTIMATORS[name])
    assert vectors.norm(vectors.add(found.vector, plain.vector, -1.0)) < 1e-12 * plain.norm
    query = Subset(Loaded(training.query), range(12))
    assert found.on(task, query, collate=collate) == pytest.approx(plain.on(task, training.query), rel=1e-12)
