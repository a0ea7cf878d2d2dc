"""Self-influence by Unrolled: dense recursions with each sample as its own query, pairs of an attribution, and resuming."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dense_segments import DenseSegments
from torch import Tensor, nn
from torch.optim import SGD, AdamW
from torch.utils.data import Subset, TensorDataset

import diffin
from cases import Dense
from diffin import stacks
from diffin.across_probes import AcrossProbe, End
from diffin.derivatives.across import OwnAcross
from diffin.errors import DerivativeError, DiffinError, ProbeError
from diffin.estimators import self_unrolled
from diffin.estimators.self_unrolled import SelfUnrolled
from diffin.probes import ProbeSet
from diffin.scoring.engine import Engine
from diffin.task import PerSampleLoss, frozen
from repeatable import adam, two_groups
from retrained import Training, cnn, sgd

SEGMENTS = diffin.Unrolled(propagation="segments", rank=500, curvature_samples=None, hessian="exact")
ALL = 500
"""More directions than there are parameters."""

CHECKED = 2


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))


TRAININGS: dict[str, Callable[[], Training]] = {
    "sgd": lambda: Training(mlp, sgd()),
    "momentum": lambda: Training(mlp, sgd(momentum=0.9)),
    "coupled decay": lambda: Training(mlp, sgd(momentum=0.5, weight_decay=0.1)),
    "two groups, clipped": lambda: Training(
        mlp,
        two_groups(SGD, {"lr": 0.3, "weight_decay": 0.02}, {"lr": 0.05, "weight_decay": 0.2}, momentum=0.7),
        clip=0.3,
    ),
    "adamw": lambda: Training(mlp, adam(AdamW, weight_decay=0.4)),
}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def asked(of: tuple[Any, diffin.Trajectory], train: Any, rank: int = ALL, **options: Any) -> diffin.Scores:
    settings = {"estimator": SEGMENTS, "rank": rank, "progress": False, **options}
    return diffin.self_influence(*of, train, **settings)


def one_of(data: TensorDataset, number: int) -> TensorDataset:
    return TensorDataset(*(t[number : number + 1] for t in data.tensors))


def dense_terms(of: tuple[Any, diffin.Trajectory], train: TensorDataset, parameters: Any = None) -> np.ndarray:
    """Float64[ndarray, "CHECKED m"], each with the sample as the query."""
    rows = [DenseSegments((*of, train, one_of(train, z)), parameters).terms()[z] for z in range(CHECKED)]
    return np.stack(rows)


def close(found: np.ndarray, wanted: np.ndarray, tolerance: float) -> None:
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


@pytest.mark.parametrize("name", TRAININGS)
def test_with_every_direction_it_is_the_recursion_in_dense_matrices(name: str, tmp_path: Path) -> None:
    training = TRAININGS[name]()
    training.checkpoints = [0, 5, 12]
    of = training.recorded(tmp_path / "run")
    close(asked(of, training.train).terms[:CHECKED], dense_terms(of, training.train), 1e-5)


def test_of_foreign_checkpoints_it_is_that_of_plain_sgd(tmp_path: Path) -> None:
    training = TRAININGS["momentum"]()
    task, recorded = training.recorded(tmp_path / "run")
    paths = []
    for checkpoint in recorded.stored:
        paths.append(tmp_path / f"{checkpoint.step}.pt")
        torch.save(checkpoint.state, paths[-1])
    of = task, diffin.Trajectory.from_checkpoints(paths, [2, 9, 20], [0.3, 0.2, 0.1], dataset_size=24)
    close(asked(of, training.train).terms[:CHECKED], dense_terms(of, training.train), 1e-5)


def test_some_of_the_parameters_are_studied(tmp_path: Path) -> None:
    training = TRAININGS["momentum"]()
    of = training.recorded(tmp_path / "run")
    found = asked(of, training.train, parameters="2.*").terms[:CHECKED]
    close(found, dense_terms(of, training.train, "2.*"), 1e-5)


@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_with_every_direction_it_is_the_diagonal_of_an_attribution(name: str, tmp_path: Path) -> None:
    training = TRAININGS[name]()
    of = training.recorded(tmp_path / "run")
    queries = Subset(training.train, range(6))
    pairs = diffin.attribute(
        *of, training.train, queries, estimator=SEGMENTS, matrix=True, output=tmp_path / "pairs", progress=False
    )
    wanted = np.concatenate([part for _, part in pairs.matrix()])[:6].diagonal()
    close(asked(of, training.train).influence[:6], wanted, 1e-5)


@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_few_directions_rank_and_scale_as_all_of_them(name: str, tmp_path: Path) -> None:
    training = TRAININGS[name]()
    training.size = 24
    of = training.recorded(tmp_path / "run")
    whole, part = (asked(of, training.train, rank).influence for rank in (ALL, 12))
    assert np.corrcoef(whole, part)[0, 1] > 0.95
    assert np.linalg.norm(part - whole) < 0.25 * np.linalg.norm(whole)


def test_what_the_basis_does_not_hold_gets_the_mean_answer_of_remainders(tmp_path: Path) -> None:
    """Five steps on a convex loss: the answer to a push is a polynomial that three Lanczos steps integrate exactly."""
    rate, steps = 0.05, 5
    training = Training(lambda: nn.Linear(5, 3), sgd(lr=rate), steps=steps, checkpoints=[0])
    task, trajectory = training.recorded(tmp_path / "run")
    estimator = SelfUnrolled(SEGMENTS, rank=6)  # four samples for each: all of them, in order
    probes = diffin.build_probes(task, trajectory, training.train, estimator=estimator, progress=False)
    (probe,) = probes.load(0).self_probes
    assert isinstance(probe, AcrossProbe)
    with frozen(task.model):
        dense = Dense(PerSampleLoss(task, trajectory.checkpoints[0].state))
        hessian = dense.hessian(training.train.tensors)
        last = Dense(PerSampleLoss(task, probe.end.state))
        rows = torch.stack([last.gradient(last.sample(training.train.tensors, z)) for z in range(training.size)])
    basis, directions = (
        torch.stack([dense.flatten(one) for one in stacks.unstacked(stack)])
        for stack in (probe.end.basis, probe.directions)
    )
    torch.testing.assert_close(basis @ basis.T, torch.eye(6, dtype=torch.float64))
    # At the checkpoint the space is that of the six alone.
    values, rotation = torch.linalg.eigh(basis @ hessian @ basis.T)
    ritz = rotation.T @ basis
    answers = -rate * sum((1 - rate * values) ** k for k in range(steps))
    gradients = stacks.stacked([dense.unflatten(row) for row in rows])
    remainders = self_unrolled._combinations(gradients, probe.end.basis, SEGMENTS.seed)
    left = torch.stack([dense.flatten(one) for one in stacks.unstacked(remainders)])
    torch.testing.assert_close(left @ basis.T, torch.zeros(len(left), 6, dtype=torch.float64))
    step = torch.eye(len(hessian), dtype=torch.float64) - rate * hessian
    whole = -rate * sum(torch.linalg.matrix_power(step, k) for k in range(steps))
    mean = torch.trace(left @ whole @ left.T) / torch.trace(left @ left.T)
    torch.testing.assert_close(dense.flatten(probe.rest), mean.expand(len(hessian)))
    inside = basis @ ritz.T @ torch.diag(answers - mean) @ ritz
    torch.testing.assert_close(directions, inside)


@pytest.mark.parametrize("build", [mlp, cnn], ids=["mlp", "cnn with batch norm"])
def test_a_probe_is_measured_as_it_says(build: Callable[[], nn.Module]) -> None:
    training = Training(build, sgd(), shape=(5,) if build is mlp else (1, 6, 6))
    task, generator = diffin.tasks.Classification(training.model().eval()), torch.Generator().manual_seed(1)
    batch = tuple(t[:7] for t in training.train.tensors)

    def moved() -> dict[str, Tensor]:
        state = task.model.state_dict()
        return {
            name: t + 0.3 * torch.rand(t.shape, generator=generator, dtype=t.dtype) if t.is_floating_point() else t
            for name, t in state.items()
        }

    def noise(like: dict[str, Tensor], *shape: int) -> dict[str, Tensor]:
        return {n: torch.randn(*shape, *t.shape, generator=generator, dtype=t.dtype) for n, t in like.items()}

    with frozen(task.model):
        loss, last = PerSampleLoss(task, moved()), PerSampleLoss(task, moved())
        names = loss.parameters
        end = End({**last.rest, **last.parameters}, noise(names, 3))
        probe = AcrossProbe(2.0, end, noise(names), noise(names, 3))
        found = OwnAcross().prepare_own(loss, probe)(batch)
        here, there = Dense(loss), Dense(last)
        flat = [torch.stack([here.flatten(one) for one in stacks.unstacked(s)]) for s in (end.basis, probe.directions)]
        for z in range(7):
            one, other = (dense.gradient(dense.sample(batch, z)) for dense in (here, there))
            wanted = (flat[0] @ other) @ (flat[1] @ one) + (here.flatten(probe.rest) * other) @ one
            torch.testing.assert_close(found.derivatives[z], wanted)
        torch.testing.assert_close(found.losses, loss(loss.parameters, batch))


def test_scores_depend_neither_on_the_batch_size_nor_on_what_is_kept_ready(tmp_path: Path) -> None:
    training = TRAININGS["momentum"]()
    of = training.recorded(tmp_path / "run")
    one, many = (asked(of, training.train, 6, batch_size=size) for size in (3, 24))
    np.testing.assert_allclose(one.terms, many.terms, rtol=1e-9, atol=1e-12)
    probes = diffin.build_probes(*of, training.train, estimator=SelfUnrolled(SEGMENTS, 6), progress=False)
    with frozen(of[0].model):
        batches = [(np.arange(24), training.train.tensors)]
        (rows,) = Engine(of[0], probes, OwnAcross(), resident_bytes=0).measure(batches)
    np.testing.assert_allclose(rows.terms, many.terms, rtol=1e-12, atol=0)
    loaded = [probes.load(position) for position in (0, 1)]
    assert loaded[0].self_probes[0].end is loaded[1].self_probes[0].end  # type: ignore[union-attr]


def interrupted(of: Any, train: Any, output: Path, rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop while the second of the segments is passed."""
    calls, through = [], self_unrolled._through

    def stopping(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return through(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(self_unrolled, "_through", stopping)
        with pytest.raises(KeyboardInterrupt):
            asked(of, train, rank, output=output)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_an_interrupted_run_resumes_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = TRAININGS["momentum"]()
    training.checkpoints = [0, 5, 12]
    of = training.recorded(tmp_path / "run")
    asked(of, training.train, 6, output=tmp_path / "whole")
    # What another question left is neither used nor kept.
    interrupted(of, training.train, tmp_path / "part", 5, monkeypatch)
    interrupted(of, training.train, tmp_path / "part", 6, monkeypatch)
    kept = tmp_path / "part" / "probes" / "probe-00000012-000.safetensors"
    before = kept.stat().st_mtime_ns
    asked(of, training.train, 6, output=tmp_path / "part")
    assert kept.stat().st_mtime_ns == before
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")
    assert sum(name.startswith("probes/end-") for name in contents(tmp_path / "whole")) == 1


def test_a_damaged_end_is_refused_and_built_again(tmp_path: Path) -> None:
    training = TRAININGS["sgd"]()
    of = training.recorded(tmp_path / "run")
    first = asked(of, training.train, 3, output=tmp_path / "out")
    (end,) = (tmp_path / "out" / "probes").glob("end-*")
    end.write_bytes(end.read_bytes()[:-8] + b"12345678")
    with pytest.raises(ProbeError, match="is damaged"):
        ProbeSet.open(tmp_path / "out" / "probes").load(0)
    again = asked(of, training.train, 3, output=tmp_path / "out", resume=False)
    np.testing.assert_array_equal(first.influence, again.influence)


def test_a_sample_without_a_finite_loss_fails_alone(tmp_path: Path) -> None:
    training = TRAININGS["sgd"]()
    of = training.recorded(tmp_path / "run")
    inputs, targets = training.train.tensors
    broken = TensorDataset(inputs.index_fill(0, torch.tensor([5]), float("nan")), targets)
    scores = asked(of, broken, 6)
    assert scores.failed.tolist() == [5]
    assert np.isfinite(np.delete(scores.influence, 5)).all()


def test_the_number_of_directions_is_bounded_by_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    training = TRAININGS["sgd"]()
    of = training.recorded(tmp_path / "run")
    monkeypatch.setattr(self_unrolled, "BYTES", 5 * 8 * sum(p.numel() for p in of[0].model.parameters()))
    with caplog.at_level(logging.WARNING):
        probes = diffin.build_probes(*of, training.train, estimator=SelfUnrolled(SEGMENTS), progress=False)
    assert "5 directions instead of 64" in caplog.text
    assert len(probes.load(0).self_probes[0].directions["0.weight"]) == 5  # type: ignore[union-attr]


def test_it_is_the_default_and_needs_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    training = TRAININGS["adamw"]()
    of = training.recorded(tmp_path / "run")
    with caplog.at_level(logging.WARNING):
        scores = diffin.self_influence(*of, training.train, progress=False)
    assert not caplog.text
    described = scores.metadata["probes"]["metadata"]["estimator"]
    assert (described["name"], described["of"], scores.metadata["terms"]) == ("self-influence", "unrolled", "parts")
    with caplog.at_level(logging.WARNING):
        diffin.self_influence(*of, training.train, estimator=diffin.TracIn(), progress=False)
    assert "TracIn is derived for plain SGD" in caplog.text


def test_what_cannot_be_asked_is_refused(tmp_path: Path) -> None:
    training = TRAININGS["sgd"]()
    of = training.recorded(tmp_path / "run")
    with pytest.raises(DiffinError, match=r"ask about some samples with diffin\.attribute"):
        asked(of, training.train, estimator=diffin.Unrolled(propagation="steps"))
    with pytest.raises(DiffinError, match="exact=True is known for"):
        asked(of, training.train, exact=True)
    with pytest.raises(DiffinError, match="rank=0: pass the number of directions"):
        asked(of, training.train, 0)
    probes = diffin.build_probes(*of, training.train, estimator=SelfUnrolled(SEGMENTS, 3), progress=False)
    with pytest.raises(DerivativeError, match="pass derivatives='auto'"):
        diffin.score_probes(of[0], probes, training.train, derivatives="ghost", progress=False)
    far = {name: t * float("inf") for name, t in probes.load(0).self_probes[0].rest.items()}  # type: ignore[union-attr]
    with pytest.raises(ProbeError, match="not finite"):
        replace(probes.load(0).self_probes[0], rest=far)  # type: ignore[type-var]
