"""The self-check: it takes a back end that is right, says how wrong the others are, and refuses what cannot work."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cases import CASES, Case, make, random_direction
from diffin.derivatives import Difference, Forward, Ghost, choose, from_description
from diffin.derivatives.selfcheck import TOLERANCE, reverse_over_reverse
from diffin.errors import DerivativeError
from diffin.probes import CheckpointProbes, Probe, ProbeSet, ProbeWriter
from diffin.task import PerSampleLoss, frozen
from diffin.tasks import Classification, FunctionTask


def probes_of(case: Case, folder: Path, *, mixed: bool = True) -> ProbeSet:
    loss = PerSampleLoss(case.task)
    u, v, d = (random_direction(loss, seed) for seed in (1, 2, 3))
    writer = ProbeWriter(folder, loss.names, {})
    writer.write(CheckpointProbes(0, dict(case.task.model.state_dict()), (Probe(1.0, u, (v, d) if mixed else None),)))
    return writer.finish([0])


@pytest.mark.parametrize("name", CASES)
def test_in_float64_every_back_end_is_found_accurate(name: str, tmp_path: Path) -> None:
    case = make(name)
    report = choose(case.task, probes_of(case, tmp_path), case.batch).report
    assert report.reference == "reverse"
    assert all(entry.failure is None and entry.error < 1e-3 for entry in report.back_ends)
    json.dumps(report.to_json(), allow_nan=False)


def test_the_estimated_error_is_the_true_one(tmp_path: Path) -> None:
    exact, coarse = make("mlp"), make("mlp").to(torch.float32)
    choice = choose(coarse.task, probes_of(coarse, tmp_path), coarse.batch, "difference")
    probe = next(iter(probes_of(exact, tmp_path / "exact"))).probes[0]
    with frozen(exact.task.model):
        wanted = reverse_over_reverse(PerSampleLoss(exact.task), probe, exact.batch)
    with frozen(coarse.task.model):
        loss = PerSampleLoss(coarse.task)
        probe = next(iter(probes_of(coarse, tmp_path / "coarse"))).probes[0]
        measured = choice.backend.prepare(loss, probe)(coarse.batch).derivatives
    error = float((measured - wanted).norm() / wanted.norm())
    assert choice.report.error == pytest.approx(error, rel=0.2)


def test_the_step_does_not_drown_in_rounding(tmp_path: Path) -> None:
    case = make("mlp").to(torch.float32)
    report = choose(case.task, probes_of(case, tmp_path), case.batch, "difference").report
    assert 1e-4 < report.back_ends[0].step < 0.1


class Once(torch.autograd.Function):
    """An operation with a first derivative and nothing else, as custom kernels have."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.tanh(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, delta: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return delta * (1 - torch.tanh(x) ** 2)


class OnceModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(Once.apply(self.first(x)))


def test_a_kernel_without_second_derivatives_goes_by_difference_or_ghost(tmp_path: Path) -> None:
    torch.manual_seed(0)
    batch = (torch.randn(20, 5), torch.randint(3, (20,)))
    case = Case(Classification(OnceModel()), batch, batch)
    choice = choose(case.task, probes_of(case, tmp_path), case.batch)
    assert choice.report.reference == "richardson"
    assert choice.backend.name in ("difference", "ghost")
    assert {entry.name: entry.failure is None for entry in choice.report.back_ends} == {
        "difference": True, "forward": False, "ghost": True,
    }  # fmt: skip
    smooth = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
    smooth.load_state_dict(dict(zip(smooth.state_dict(), case.task.model.state_dict().values(), strict=True)))
    probe = next(iter(ProbeSet.open(tmp_path))).probes[0]
    rename = dict(zip(case.task.model.state_dict(), smooth.state_dict(), strict=True))
    twin = Probe(
        1.0,
        *(({rename[k]: t for k, t in v.items()}) for v in (probe.u,)),
        tuple({rename[k]: t for k, t in v.items()} for v in probe.mixed),
    )
    with frozen(smooth), frozen(case.task.model):
        wanted = reverse_over_reverse(PerSampleLoss(Classification(smooth)), twin, batch)
        measured = choice.backend.prepare(PerSampleLoss(case.task), probe)(batch).derivatives
    assert float((measured - wanted).norm() / wanted.norm()) < 0.02
    with pytest.raises(DerivativeError, match="forward: "):
        choose(case.task, ProbeSet.open(tmp_path), case.batch, "forward")


class Log(nn.Module):
    """A loss that exists only for a positive parameter, which is close to zero."""

    def __init__(self) -> None:
        super().__init__()
        self.large = nn.Parameter(torch.tensor(1.0))
        self.small = nn.Parameter(torch.tensor(1e-3))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.large * torch.log(self.small)


def test_a_step_out_of_the_domain_of_the_loss_is_not_taken_for_a_perfect_one(tmp_path: Path) -> None:
    batch = torch.rand(20) + 0.5
    case = Case(FunctionTask(Log(), lambda m, x: m(x)), batch, batch)
    choice = choose(case.task, probes_of(case, tmp_path), batch)
    with frozen(case.task.model):
        loss = PerSampleLoss(case.task)
        probe = next(iter(ProbeSet.open(tmp_path))).probes[0]
        measured = choice.backend.prepare(loss, probe)(batch).derivatives
        wanted = reverse_over_reverse(loss, probe, batch)
    torch.testing.assert_close(measured, wanted, rtol=TOLERANCE, atol=0)


def test_half_precision_is_not_differenced(tmp_path: Path) -> None:
    case = make("mlp").to(torch.bfloat16)
    probes = probes_of(case, tmp_path)
    with pytest.raises(DerivativeError, match=r"pass model\.float\(\)"):
        choose(case.task, probes, case.batch, "difference")
    assert choose(case.task, probes, case.batch).backend.name == "forward"


def test_kinks_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(*(m for _ in range(6) for m in (nn.Linear(16, 16, bias=False), nn.ReLU())), nn.Linear(16, 3))
    batch = (torch.randn(32, 16), torch.randint(3, (32,)))
    case = Case(Classification(net), batch, batch)
    with caplog.at_level(logging.WARNING):
        choice = choose(case.task, probes_of(case, tmp_path), batch, "difference")
    assert choice.report.error > TOLERANCE
    assert "kinks" in caplog.text
    automatic = choose(case.task, probes_of(case, tmp_path), batch).report
    assert automatic.chosen != "difference"
    assert automatic.error < TOLERANCE


@pytest.mark.parametrize("backend", [Difference(1e-3), Ghost(3e-4), Forward()])
def test_a_back_end_is_recreated_from_its_description(backend: Difference | Ghost | Forward) -> None:
    assert from_description(json.loads(json.dumps(backend.describe()))) == backend


def test_unknown_names_and_steps_are_refused(tmp_path: Path) -> None:
    case = make("mlp")
    with pytest.raises(DerivativeError, match="'backward': pass one of difference, forward, ghost"):
        choose(case.task, probes_of(case, tmp_path), case.batch, "backward")  # type: ignore[arg-type]
    with pytest.raises(DerivativeError, match="pass one of"):
        from_description({"name": "exact"})
    for kind in (Difference, Ghost):
        with pytest.raises(DerivativeError, match=r"step=0"):
            kind(0)
