"""Which derivative back end to use, with which step, and how far its numbers can be trusted.

Every candidate measures the same probes on a small sample at the first, the middle and the last checkpoint. The exact
answer comes from differentiating each sample's gradient once more (reverse over reverse, sample by sample, without
autocast), which shares nothing with the candidates; where the model does not allow it, a candidate is compared with the
Richardson extrapolation of its own results at two steps. The step of a differencing back end is the one that errs least:
too long and the loss is not smooth enough, too short and rounding shows.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from diffin.batches import Batch, batch_size, select
from diffin.derivatives.base import Directional, as_float64
from diffin.derivatives.composite import composite_attention
from diffin.derivatives.difference import Difference
from diffin.derivatives.forward import Forward
from diffin.derivatives.ghost import Ghost
from diffin.derivatives.gradient import leaves
from diffin.derivatives.hessian import refuse_once_differentiable
from diffin.errors import DerivativeError
from diffin.probes import Probe, ProbeSet
from diffin.task import PerSampleLoss, Task, frozen, in_full_precision
from diffin.vectors import Vector

_log = logging.getLogger(__name__)

Derivatives = Literal["auto", "difference", "forward", "ghost"]
NAMES = ("difference", "forward", "ghost")

TOLERANCE = 0.1
"""Relative error below which the cheapest back end is taken, and above which a warning is given.

The noise of a score between checkpoints is several times larger; on networks with kinks, differences that err by 0.06
rank samples as exact derivatives do to 0.997, at a quarter of their time.
"""

_UNSUPPORTED = (RuntimeError, NotImplementedError, TypeError, ValueError)
"""What PyTorch raises where an operation has no such derivative."""

_SAMPLES = 32
_COUPLED = 12
"""Of them, where losses are coupled: how many are differentiated exactly, since each takes a pass over all."""

_RUNS, _RUNS_SECONDS = 20, 0.2
_STEPS = {
    torch.float32: (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    torch.float64: (1e-6, 1e-5, 1e-4, 1e-3),
}


@dataclass(frozen=True)
class BackEndCheck:
    """What the self-check found of one back end.

    Attributes:
        name: ``"difference"``, ``"forward"`` or ``"ghost"``.
        step: the step chosen, or ``None`` where there is none to choose.
        error: ``|estimate - reference| / |reference|`` over the sample (Euclidean), the worst checkpoint; ``None`` where the
            back end failed, or nothing is there to compare it with.
        rank_agreement: Spearman correlation with the reference over the sample, the worst checkpoint.
        cost: time over one plain forward pass of the same batch.
        failure: why it cannot be used, or ``None``.
    """

    name: str
    step: float | None = None
    error: float | None = None
    rank_agreement: float | None = None
    cost: float | None = None
    failure: str | None = None


@dataclass(frozen=True)
class SelfCheck:
    """The self-check of all candidates.

    Attributes:
        chosen: the name of the back end in use.
        reference: ``"reverse"`` (exact) or ``"richardson"`` (extrapolated: an estimate of the error, not a bound).
        samples: how many samples were measured.
        back_ends: one entry a candidate.
    """

    chosen: str
    reference: str
    samples: int
    back_ends: tuple[BackEndCheck, ...]

    @property
    def error(self) -> float | None:
        """The estimated relative error of the back end in use."""
        return next(entry.error for entry in self.back_ends if entry.name == self.chosen)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Choice:
    """A back end ready for use, and why."""

    backend: Directional
    report: SelfCheck


def from_description(description: Mapping[str, Any]) -> Directional:
    """The back end that ``describe()`` described."""
    name = description.get("name")
    if name == "difference":
        return Difference(float(description["step"]))
    if name == "ghost":
        return Ghost(float(description["step"]))
    if name == "forward":
        return Forward()
    raise DerivativeError(f"derivatives={name!r}: pass one of {', '.join(NAMES)}, or 'auto'")


def choose(
    task: Task, probes: ProbeSet, sample: Batch, derivatives: Derivatives = "auto", *, every: bool = False
) -> Choice:
    """Check the back ends on a sample, and take one.

    ``"auto"`` takes the cheapest whose estimated error is below :data:`TOLERANCE`, else the most accurate.

    Args:
        task: model and loss.
        probes: what will be measured.
        sample: a batch; its first 32 samples are used.
        derivatives: a back end by name, or ``"auto"``.
        every: check all back ends even if one is named.

    Raises:
        DerivativeError: no candidate works on this model; the message says why each failed.
    """
    if derivatives not in ("auto", *NAMES):
        raise DerivativeError(f"derivatives={derivatives!r}: pass one of {', '.join(NAMES)}, or 'auto'")
    names = NAMES if every or derivatives == "auto" else (derivatives,)
    sample = select(sample, slice(0, _SAMPLES))
    with frozen(task.model):
        bench = _Bench(task, probes, sample)
        entries = tuple(bench.check(name) for name in names)
    usable = [entry for entry in entries if entry.failure is None and derivatives in ("auto", entry.name)]
    if not usable:
        reasons = "; ".join(f"{entry.name}: {entry.failure}" for entry in entries)
        raise DerivativeError(f"derivatives={derivatives!r} does not work on this model ({reasons})")
    good = [entry for entry in usable if (entry.error or 0.0) <= TOLERANCE]
    if good:
        best = min(good, key=lambda entry: entry.cost or 0.0)
    else:
        best = min(usable, key=lambda entry: entry.error or 0.0)
        _log.warning(
            "derivatives=%r: the estimated relative error of %s is %.1g; ranks agree to %.3f. A network with kinks (ReLU, "
            "max-pooling) is hard to difference: derivatives='forward' is exact where the model allows it",
            derivatives, best.name, best.error or 0.0, best.rank_agreement or 0.0,
        )  # fmt: skip
    backend = from_description({"name": best.name, "step": best.step})
    return Choice(backend, SelfCheck(best.name, bench.reference, batch_size(sample), entries))


class _Bench:
    """The probes of a few checkpoints, a sample, and the exact answers where they can be had."""

    def __init__(self, task: Task, probes: ProbeSet, sample: Batch) -> None:
        positions = sorted({0, len(probes) // 2, len(probes) - 1})
        self._cases: list[tuple[PerSampleLoss, Probe]] = []
        for position in positions:
            checkpoint = probes.load(position)
            self._cases.append((PerSampleLoss(task, checkpoint.state, list(probes.parameters)), checkpoint.probes[0]))
        loss = self._cases[0][0]
        self._sample = loss.to_device(sample)
        self._steps = _STEPS.get(next(iter(loss.parameters.values())).dtype, _STEPS[torch.float32])
        with torch.no_grad():
            loss(loss.parameters, self._sample)  # warm up
            self._plain = fastest_seconds(lambda: loss(loss.parameters, self._sample), loss.device)
        self._exact: list[Tensor] = []
        with suppress(*_UNSUPPORTED), in_full_precision(task):
            self._exact = [reverse_over_reverse(loss, probe, self._sample).cpu() for loss, probe in self._cases]
        self.reference = "reverse" if self._exact else "richardson"

    def check(self, name: str) -> BackEndCheck:
        try:
            return self._check_forward() if name == "forward" else self._check_steps(name)
        except _UNSUPPORTED as error:
            return BackEndCheck(name, failure=_sentence(error))

    def _check_forward(self) -> BackEndCheck:
        results = self._measure(Forward())
        cost = self._cost(Forward())
        if not self._exact:
            return BackEndCheck("forward", cost=cost)
        error = self._error(results, self._exact)
        if not math.isfinite(error):
            return BackEndCheck("forward", failure="derivatives of samples with a finite loss are not finite")
        return BackEndCheck("forward", None, error, self._agreement(results, self._exact), cost)

    def _check_steps(self, name: str) -> BackEndCheck:
        kind = Difference if name == "difference" else Ghost
        results = {step: self._measure(kind(step)) for step in self._steps}
        steps = self._steps if self._exact else self._steps[1:]
        wanted = {step: self._exact or self._extrapolated(results, step) for step in steps}
        errors = {step: self._error(results[step], wanted[step]) for step in steps}
        step = min(errors, key=lambda s: errors[s])
        if not math.isfinite(errors[step]):
            return BackEndCheck(name, failure="every step leaves the region in which the losses are finite")
        return BackEndCheck(
            name, step, errors[step], self._agreement(results[step], wanted[step]), self._cost(kind(step))
        )

    def _measure(self, backend: Directional) -> list[Tensor]:
        return [backend.prepare(loss, probe)(self._sample).derivatives.cpu() for loss, probe in self._cases]

    def _error(self, results: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
        return max(_relative(a, b) for a, b in zip(results, wanted, strict=True))

    def _agreement(self, results: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
        return min(_spearman(a, b) for a, b in zip(results, wanted, strict=True))

    def _extrapolated(self, results: Mapping[float, Sequence[Tensor]], step: float) -> list[Tensor]:
        """Richardson: the results at this step and at the next shorter one, with the quadratic error cancelled."""
        shorter = self._steps[self._steps.index(step) - 1]
        ratio = (step / shorter) ** 2
        return [b + (b - a) / (ratio - 1) for a, b in zip(results[step], results[shorter], strict=True)]

    def _cost(self, backend: Directional) -> float:
        loss, probe = self._cases[-1]
        measure = backend.prepare(loss, probe)
        measure(self._sample)  # warm up, and let ghost find its layers
        return round(fastest_seconds(lambda: measure(self._sample), loss.device) / self._plain, 2)


def reverse_over_reverse(loss: PerSampleLoss, probe: Probe, batch: Batch) -> Tensor:
    """``D_u l_z + D2_{v,d} l_z`` exactly, sample by sample: the gradient, and the gradient of its product with v.

    Returns:
        Float64[Tensor, "B"]; of coupled losses the effects, and NaN after the first 12.
    """
    point = leaves(loss.parameters)
    parameters = list(point.values())
    values: list[Tensor] = []
    for index in range(batch_size(batch)):
        with torch.enable_grad(), composite_attention():
            if loss.task.group_size is None:
                total = loss(point, select(batch, slice(index, index + 1))).sum()
            elif index < _COUPLED:
                total = loss.outcome(point, batch).effects()[index]
            else:
                values.append(torch.full_like(values[0], torch.nan))
                continue
            gradients = torch.autograd.grad(total, parameters, create_graph=probe.mixed is not None, allow_unused=True)
            value = _product(gradients, point, probe.u)
            if probe.mixed is not None:
                along_v = _product(gradients, point, probe.mixed[0])
                if along_v.requires_grad:
                    refuse_once_differentiable([along_v])
                    second = torch.autograd.grad(along_v, parameters, allow_unused=True)
                    value = value + _product(second, point, probe.mixed[1])
        values.append(as_float64(value))
    return torch.stack(values)


def _product(gradients: Sequence[Tensor | None], point: Vector, vector: Vector) -> Tensor:
    """``<gradients, vector>``; an unused parameter counts as zero."""
    anchor = next(iter(point.values()))
    terms = [(g * vector[name].to(g)).sum() for name, g in zip(point, gradients, strict=True) if g is not None]
    return torch.stack(terms).sum() if terms else torch.zeros((), dtype=anchor.dtype, device=anchor.device)


def fastest_seconds(run: Callable[[], object], device: torch.device) -> float:
    """The fastest of two runs, or of up to twenty short ones: on a busy machine, one of those is interrupted as a rule."""
    taken: list[float] = []
    while len(taken) < 2 or (len(taken) < _RUNS and sum(taken) < _RUNS_SECONDS):
        _synchronize(device)
        start = time.perf_counter()
        run()
        _synchronize(device)
        taken.append(time.perf_counter() - start)
    return min(taken)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _relative(a: Tensor, b: Tensor) -> float:
    """``|a - b| / |b|`` over the samples that have a reference; infinite if one of them has no estimate."""
    finite = torch.isfinite(b)
    if not bool(torch.isfinite(a[finite]).all()):
        return float("inf")
    size = float(b[finite].norm())
    return float((a[finite] - b[finite]).norm()) / size if size else float((a[finite] != 0).any())


def _spearman(a: Tensor, b: Tensor) -> float:
    from scipy.stats import spearmanr

    finite = torch.isfinite(a) & torch.isfinite(b)
    a, b = a[finite], b[finite]
    if len(a) < 3 or bool((a == a[0]).all()) or bool((b == b[0]).all()):
        return 1.0
    return float(spearmanr(a.numpy(), b.numpy()).statistic)


def _sentence(error: BaseException) -> str:
    return (
        f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
        if str(error).strip()
        else type(error).__name__
    )
