"""Self-influence against dense gradients and Hessians of every sample, in float64; and that a run can be interrupted."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import diffin
from cases import Dense
from diffin.derivatives.own import OwnDifference, OwnExact
from diffin.errors import DerivativeError, DiffinError, ProbeError, ScoringError, TrajectoryError
from diffin.estimators.self_influence import SelfInfluence
from diffin.own_influence import self_influence
from diffin.probes import CheckpointProbes, ProbeSet, ProbeWriter
from diffin.self_probes import SelfProbe
from diffin.task import PerSampleLoss, frozen
from diffin.tasks import Classification
from training import record

COUNT, STEPS = 16, 12


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(COUNT, 1, 6, 6, generator=generator, dtype=torch.float64)
    return TensorDataset(inputs, torch.randint(0, 3, (COUNT,), generator=generator))


def network(activation: type[nn.Module] = nn.GELU) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 2, 3), activation(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8, 3), activation(), nn.Linear(3, 3)
        ).double()  # fmt: skip


@pytest.fixture(scope="module")
def run(data: TensorDataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Classification, diffin.Trajectory]:
    """A training whose groups have learning rates of their own."""
    task = Classification(network())
    convolution, *others = task.model.parameters()
    optimizer = torch.optim.SGD([{"params": [convolution], "lr": 0.3}, {"params": others, "lr": 0.1}])
    folder = tmp_path_factory.mktemp("run")
    return task, record(folder, task, data, steps=STEPS, batch_size=8, checkpoints=3, optimizer=optimizer)


def rates_of(checkpoint: diffin.Checkpoint, loss: PerSampleLoss, dense: Dense) -> Tensor:
    rates = checkpoint.learning_rates(loss.names)
    return dense.flatten({name: torch.full_like(t, rates[name]) for name, t in loss.parameters.items()})


def dense_terms(task: Classification, trajectory: diffin.Trajectory, data: TensorDataset, kind: str) -> np.ndarray:
    """Float64[ndarray, "N m"]: TracIn, or Eq. 12 with the whole training set as the proxy batch."""
    count, terms = len(trajectory.checkpoints), []
    whole = data[:]
    for checkpoint in trajectory.checkpoints:
        with frozen(task.model):
            loss = PerSampleLoss(task, checkpoint.state)
            dense = Dense(loss)
            e = rates_of(checkpoint, loss, dense)
            hessian, mean = dense.hessian(whole), dense.gradient(whole)
            column = []
            for index in range(COUNT):
                one = dense.sample(whole, index)
                g = dense.gradient(one)
                if kind == "tracin":
                    column.append(-trajectory.total_steps / (count * COUNT) * float(g @ (e * g)))
                else:
                    bracket = (e * g) @ hessian @ (e * g) + (e * g) @ dense.hessian(one) @ (e * mean)
                    column.append(-checkpoint.step / (count * COUNT) * float(bracket))
            terms.append(column)
    return np.array(terms).T


@pytest.fixture(scope="module")
def wanted(run: tuple[Classification, diffin.Trajectory], data: TensorDataset) -> dict[str, np.ndarray]:
    return {kind: dense_terms(*run, data, kind) for kind in ("tracin", "diffin")}


def close(found: np.ndarray, wanted: np.ndarray, tolerance: float) -> bool:
    return bool(np.linalg.norm(found - wanted) <= tolerance * np.linalg.norm(wanted))


def test_the_groups_have_rates_of_their_own(run: tuple[Classification, diffin.Trajectory]) -> None:
    task, trajectory = run
    rates = trajectory.checkpoints[0].learning_rates([name for name, _ in task.model.named_parameters()])
    assert len(set(rates.values())) == 2


@pytest.mark.parametrize("exact", [False, True])
def test_tracin_is_the_squared_norm(run, data, wanted, exact: bool) -> None:
    scores = self_influence(*run, data, estimator=diffin.TracIn(), exact=exact, progress=False)
    assert close(scores.terms, wanted["tracin"], 1e-12)
    assert (scores.influence < 0).all()


def test_the_exact_mode_is_equation_12(run, data, wanted) -> None:
    scores = self_influence(*run, data, estimator=diffin.DiffIn(batch_size=None), exact=True, progress=False)
    assert close(scores.terms, wanted["diffin"], 1e-10)


def test_with_every_eigenpair_only_the_difference_is_approximate(run, data, wanted) -> None:
    size = sum(p.numel() for p in run[0].model.parameters())
    scores = self_influence(*run, data, estimator=diffin.DiffIn(batch_size=None), rank=size, progress=False)
    assert close(scores.terms, wanted["diffin"], 1e-6)
    assert scores.metadata["self_check"]["back_ends"][0]["error"] < 1e-6


def test_a_few_eigenpairs_rank_as_all_of_them(run, data, wanted) -> None:
    scores = self_influence(*run, data, estimator=diffin.DiffIn(batch_size=None), rank=8, progress=False)
    assert spearmanr(scores.influence, wanted["diffin"].sum(axis=1)).statistic > 0.98


@pytest.mark.parametrize(("rank", "tolerance"), [(4, 1e-4), (30, 1e-9)])
def test_the_eigenpairs_are_those_of_largest_magnitude(run, data, rank: int, tolerance: float) -> None:
    """With 70 products Lanczos spans all 59 parameters; with 18 the last of four pairs has settled to some digits."""
    task, trajectory = run
    probes = diffin.build_probes(
        task, trajectory, data, estimator=SelfInfluence(diffin.DiffIn(batch_size=None), rank=rank), progress=False
    )
    assert probes.of_self
    for checkpoint, at in zip(trajectory.checkpoints, probes, strict=True):
        with frozen(task.model):
            loss = PerSampleLoss(task, checkpoint.state)
            dense = Dense(loss)
            root = rates_of(checkpoint, loss, dense).sqrt()
            values = torch.linalg.eigvalsh(root[:, None] * dense.hessian(data[:]) * root)
        found = [value for value, _ in at.self_probes[0].squares]
        largest = values[values.abs().argsort(descending=True)[:rank]]
        np.testing.assert_allclose(found, largest, rtol=tolerance, atol=1e-12)


def test_the_exact_mode_meets_the_same_proxy_batches(run, data) -> None:
    options = {"estimator": diffin.DiffIn(batch_size=10, batches=2, seed=3), "parameters": "4.*", "progress": False}
    fast = self_influence(*run, data, rank=27, **options)
    exact = self_influence(*run, data, exact=True, **options)
    assert close(fast.terms, exact.terms, 1e-6)


def test_scores_do_not_depend_on_the_batch_size(run, data) -> None:
    one, many = (
        self_influence(
            *run, data, estimator=diffin.DiffIn(), batch_size=size, progress=False, parameters=["0.*", "4.weight"]
        )
        for size in (3, 16)
    )
    np.testing.assert_allclose(one.influence, many.influence, rtol=1e-5, atol=1e-12)


def test_an_interrupted_run_resumes_to_the_same_bytes(run, data, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    options = {"estimator": diffin.DiffIn(), "batch_size": 4, "progress": False}
    first = self_influence(*run, data, output=whole, **options)
    part = tmp_path / "part"
    shutil.copytree(whole, part)
    # As if it had been killed while it built the probes of the last checkpoint.
    last = run[1].checkpoints[-1].step
    for file in (part / "probes" / "probes.json", part / "probes" / f"probe-{last:08d}.json", part / "scores.json"):
        file.unlink()
    for file in part.glob("part-*.parquet"):
        file.unlink()
    kept = part / "probes" / f"probe-{run[1].checkpoints[0].step:08d}-000.safetensors"
    before = kept.stat().st_mtime_ns
    second = self_influence(*run, data, output=part, **options)
    assert kept.stat().st_mtime_ns == before
    np.testing.assert_array_equal(first.influence, second.influence)
    for file in sorted(whole.rglob("*.parquet")):
        assert file.read_bytes() == (part / file.relative_to(whole)).read_bytes()
    assert ProbeSet.open(whole / "probes").digest == ProbeSet.open(part / "probes").digest


def test_missing_parts_are_measured_with_the_step_that_was_chosen(run, data, tmp_path: Path) -> None:
    probes = diffin.build_probes(
        *run, data, estimator=SelfInfluence(diffin.DiffIn()), output=tmp_path / "probes", progress=False
    )
    options = {"output": tmp_path / "scores", "batch_size": 4, "part_rows": 8, "progress": False}
    first = diffin.score_probes(run[0], probes, data, **options).influence
    (tmp_path / "scores" / "part-00001.parquet").unlink()
    np.testing.assert_array_equal(diffin.score_probes(run[0], probes, data, **options).influence, first)


def test_other_questions_are_refused(run, data, tmp_path: Path) -> None:
    task, trajectory = run
    for estimator in (diffin.MoSo(), diffin.Replay(), "diffin"):
        with pytest.raises(
            DiffinError, match=r"self-influence is known for diffin.Unrolled\(\), diffin.DiffIn\(\) and"
        ):
            self_influence(task, trajectory, data, estimator=estimator, progress=False)
    with pytest.raises(DiffinError, match="rank=0: pass the number of eigenpairs"):
        self_influence(task, trajectory, data, estimator=diffin.DiffIn(), rank=0, progress=False)
    own = diffin.build_probes(task, trajectory, data, estimator=SelfInfluence(diffin.TracIn()), progress=False)
    with pytest.raises(DerivativeError, match="cannot measure probes of self-influence; pass derivatives='auto'"):
        diffin.score_probes(task, own, data, derivatives="ghost", progress=False)
    exact = diffin.build_probes(
        task, trajectory, data, estimator=SelfInfluence(diffin.DiffIn(), exact=True), progress=False
    )
    with pytest.raises(DerivativeError, match="exact=True"):
        diffin.score_probes(task, exact, data, progress=False)
    query = diffin.build_probes(task, trajectory, data, query=data, estimator=diffin.TracIn(), progress=False)
    with pytest.raises(DerivativeError, match="these are probes of a query"):
        diffin.score_probes(task, query, data, derivatives=OwnDifference(1e-3), progress=False)
    only = record(tmp_path, task, data, steps=4, checkpoints=[0])
    with pytest.raises(TrajectoryError, match="record a later one"):
        self_influence(task, only, data, estimator=diffin.DiffIn(), progress=False)


def test_a_sample_without_a_finite_loss_fails_alone(run, data) -> None:
    inputs, targets = data.tensors
    broken = TensorDataset(inputs.index_fill(0, torch.tensor([5]), float("nan")), targets)
    for exact in (False, True):
        scores = self_influence(*run, broken, estimator=diffin.DiffIn(), exact=exact, progress=False)
        assert scores.failed.tolist() == [5]
        assert np.isfinite(np.delete(scores.influence, 5)).all()


def test_probes_come_back_as_they_were_written(run, tmp_path: Path) -> None:
    state = run[1].checkpoints[0].state
    vector = {name: torch.randn_like(t) for name, t in state.items()}
    rates = dict.fromkeys(state, 0.5)
    probes = (
        SelfProbe(-0.5, rates, vector, ((2.0, vector), (-1.0, {n: 2 * t for n, t in vector.items()}))),
        SelfProbe(1.0, rates, curvature=(0, 1, 2, 3)),
    )
    writer = ProbeWriter(tmp_path, list(state), {})
    writer.write(CheckpointProbes(4, state, (), probes))
    assert writer.has(4)
    (read,) = writer.finish([4])
    assert read.probes == ()
    for found, wanted in zip(read.self_probes, probes, strict=True):
        assert (found.weight, found.rates, found.curvature) == (wanted.weight, wanted.rates, wanted.curvature)
        assert [value for value, _ in found.squares] == [value for value, _ in wanted.squares]
        for a, b in zip(found.vectors(), wanted.vectors(), strict=True):
            assert all(torch.equal(a[name], b[name]) for name in state)
    with pytest.raises(ProbeError, match="not finite"):
        SelfProbe(1.0, rates, {n: t * float("inf") for n, t in vector.items()})


def test_kinks_are_reported(data, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where differences of norms say little, the check says so."""

    class Bent(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + (torch.remainder(1e4 * x, 1) - 0.5).abs() / 1e4  # slopes of 0 and 2, in turn

    task = Classification(network(Bent))
    trajectory = record(tmp_path, task, data, steps=6, checkpoints=2)
    with caplog.at_level(logging.WARNING):
        scores = self_influence(task, trajectory, data, estimator=diffin.DiffIn(), progress=False)
    assert scores.metadata["self_check"]["back_ends"][0]["error"] > 0.1
    assert "exact=True is exact, and slow" in caplog.text


def test_no_gradient_matrix_of_all_samples_exists() -> None:
    """The largest tensor of a pass has no more elements than the activations or the directions have."""
    size, width = 64, 2048
    model = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 2))
    task = Classification(model)
    batch = (torch.randn(size, width), torch.randint(2, (size,)))
    seen = Largest()
    with frozen(model):
        loss = PerSampleLoss(task)
        direction = {name: torch.randn_like(t) for name, t in loss.parameters.items()}
        probe = SelfProbe(1.0, dict.fromkeys(direction, 0.1), direction, ((1.0, direction), (0.5, direction)))
        measure = OwnDifference(1e-3).prepare_own(loss, probe)
        with seen:
            measure(batch)
    assert seen.elements <= 2 * width * width  # two stacked directions, where all rows would be 64 times the weight


class Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes the size of the largest tensor that an operation made."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def test_exact_and_differenced_probes_agree_on_low_rank(run, data) -> None:
    task, trajectory = run
    probes = diffin.build_probes(
        task, trajectory, data, estimator=SelfInfluence(diffin.DiffIn(), rank=3), progress=False
    )
    fast = diffin.score_probes(task, probes, data, progress=False)
    slow = diffin.score_probes(task, probes, data, derivatives=OwnExact(lambda key: None), progress=False)
    assert close(fast.terms, slow.terms, 1e-6)


def test_probes_of_a_query_cannot_go_on_with_scores_of_self_influence(run, data, tmp_path: Path) -> None:
    self_influence(*run, data, estimator=diffin.DiffIn(), output=tmp_path, progress=False)
    with pytest.raises((ProbeError, ScoringError)):
        diffin.score(*run, data, query=data, estimator=diffin.DiffIn(), output=tmp_path, progress=False)
