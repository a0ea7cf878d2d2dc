"""Which step to take differences of squared norms with, and how far what comes of them can be trusted."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor

from diffin.across_probes import AcrossProbe
from diffin.batches import Batch, batch_size, select
from diffin.derivatives.across import OwnAcross
from diffin.derivatives.own import OwnDifference, OwnExact, OwnMeasuring
from diffin.derivatives.selfcheck import TOLERANCE, BackEndCheck, SelfCheck, fastest_seconds
from diffin.errors import DerivativeError
from diffin.probes import ProbeSet
from diffin.self_probes import SelfProbe
from diffin.task import PerSampleLoss, Task, frozen, refuse_coupled

_log = logging.getLogger(__name__)

_SAMPLES = 16
_STEPS = {torch.float32: (3e-4, 1e-3, 3e-3, 1e-2), torch.float64: (1e-6, 1e-5, 1e-4, 1e-3)}
_UNCHECKED = {torch.float32: 3e-3, torch.float64: 1e-5}
"""Where nothing can be checked. In float32 a smooth network errs least at 3e-4, one with ReLU and max-pooling near 3e-3."""


def from_description(description: Mapping[str, Any]) -> OwnMeasuring:
    """The back end that ``describe()`` described."""
    if description.get("name") == OwnAcross.name:
        return OwnAcross()
    if description.get("name") != OwnDifference.name:
        raise DerivativeError(
            f"derivatives={description.get('name')!r}: probes of self-influence are measured by derivatives='auto', and "
            "exactly by diffin.self_influence(exact=True)"
        )
    return OwnDifference(float(description["step"]))


def choose(task: Task, probes: ProbeSet, sample: Batch) -> tuple[OwnMeasuring, SelfCheck | None]:
    """Compare differences of several steps with exact products on a few samples, and take the step that errs least.

    Args:
        task: model and loss.
        probes: of self-influence.
        sample: a batch; its first 16 samples are used, at the first, the middle and the last checkpoint.

    Returns:
        The back end, and what was found; ``None`` where nothing is differenced, or the model has no second derivative.
    """
    if any(isinstance(probe, AcrossProbe) for probe in probes.load(0).self_probes):
        return OwnAcross(), None
    refuse_coupled(task, "self-influence")
    with frozen(task.model):
        cases: list[tuple[PerSampleLoss, SelfProbe]] = []
        for position in sorted({0, len(probes) // 2, len(probes) - 1}):
            checkpoint = probes.load(position)
            loss = PerSampleLoss(task, checkpoint.state, list(probes.parameters))
            cases += [
                (loss, probe)
                for probe in checkpoint.self_probes[:1]
                if isinstance(probe, SelfProbe) and probe.drift is not None and probe.weight
            ]
        dtype = next(iter(loss.parameters.values())).dtype
        unchecked = OwnDifference(_UNCHECKED.get(dtype, _UNCHECKED[torch.float32]))
        if not cases:
            return unchecked, None
        batch = loss.to_device(select(sample, slice(0, _SAMPLES)))
        try:
            exact = [_measured(OwnExact(_none), each, batch) for each in cases]
        except (RuntimeError, NotImplementedError, DerivativeError) as error:
            _log.warning("differences of squared norms could not be checked against exact products (%s)", error)
            return unchecked, None
        found = {
            step: [_measured(OwnDifference(step), each, batch) for each in cases]
            for step in _STEPS.get(dtype, _STEPS[torch.float32])
        }
        errors = {step: max(map(_relative, found[step], exact)) for step in found}
        step = min(errors, key=lambda each: errors[each])
        agreement = min(map(_spearman, found[step], exact))
        cost = _cost(OwnDifference(step), cases[-1], batch)
    if errors[step] > TOLERANCE:
        _log.warning(
            "the estimated relative error of self-influence by differences is %.1g; ranks agree to %.3f. A network with "
            "kinks (ReLU, max-pooling) is hard to difference; exact=True is exact, and slow", errors[step], agreement,
        )  # fmt: skip
    entry = BackEndCheck(OwnDifference.name, step, errors[step], agreement, cost)
    return OwnDifference(step), SelfCheck(OwnDifference.name, "reverse", batch_size(batch), (entry,))


def _none(key: tuple[int, ...]) -> Any:
    raise DerivativeError(f"these probes leave the curvature {key} to the exact mode; pass exact=True")


def _measured(backend: OwnMeasuring, case: tuple[PerSampleLoss, SelfProbe], batch: Batch) -> Tensor:
    return backend.prepare_own(*case)(batch).derivatives.cpu()


def _cost(backend: OwnMeasuring, case: tuple[PerSampleLoss, SelfProbe], batch: Batch) -> float:
    """Time over one plain forward pass of the same batch."""
    loss, _ = case
    measure = backend.prepare_own(*case)
    measure(batch)  # warm up, and let it find its layers
    with torch.no_grad():
        plain = fastest_seconds(lambda: loss(loss.parameters, batch), loss.device)
    return round(fastest_seconds(lambda: measure(batch), loss.device) / plain, 2)


def _relative(found: Tensor, exact: Tensor) -> float:
    size = float(exact.norm())
    error = float((found - exact).norm())
    return error / size if size else float(error > 0)


def _spearman(found: Tensor, exact: Tensor) -> float:
    if len(exact) < 3 or len(set(exact.tolist())) == 1 or len(set(found.tolist())) == 1:
        return 1.0
    return float(spearmanr(found.numpy(), exact.numpy()).statistic)
