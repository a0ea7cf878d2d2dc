"""Measuring a quadratic form of each sample's own gradient: what self-influence asks.

    n(z) + sum over i of  lambda_i (D_{v_i} l_z)^2          (see :mod:`diffin.self_probes`)

Without a drift, n is a squared norm and one pass of :class:`PerSampleGradients` gives everything. With a drift d,

    < E g_z, H_z d >  =  d/de 1/2 < g_z, E g_z > (theta + e d)  at e = 0,

because H_z is symmetric and the derivative of the gradient along d is H_z d: a central difference of squared norms, two
passes. The directional derivatives are their mean over the same two passes, which agrees to second order in the step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from diffin import vectors
from diffin.across_probes import AcrossProbe
from diffin.batches import Batch, batch_size, select
from diffin.derivatives.base import Measure, Measured, as_float64, refuse_half_precision
from diffin.derivatives.difference import refuse_step, unit_step
from diffin.derivatives.gradient import SampleSet, mean_gradient
from diffin.derivatives.hessian import hessian_vector_product
from diffin.derivatives.per_sample import PerSampleGradients, Sums
from diffin.derivatives.products import hessian_vector_products
from diffin.errors import DerivativeError
from diffin.probes import Probe
from diffin.self_probes import SelfProbe
from diffin.task import PerSampleLoss, refuse_coupled
from diffin.vectors import Vector

_AT_ONCE = 16


@runtime_checkable
class OwnMeasuring(Protocol):
    """A way to measure what probes of self-influence ask."""

    @property
    def name(self) -> str: ...

    def prepare(self, loss: PerSampleLoss, probe: Probe) -> Measure:
        """Refuse a probe of a query."""
        ...

    def prepare_own(self, loss: PerSampleLoss, probe: SelfProbe | AcrossProbe) -> Measure:
        """Do the work that all samples share, once. Refuse a probe of the other kind."""
        ...


@dataclass(frozen=True)
class OwnDifference:
    """Squared norms, and central differences of them where a probe has a drift.

    Attributes:
        step: displacement over the norm of the parameters.
    """

    step: float
    name: ClassVar[str] = "own-difference"

    def __post_init__(self) -> None:
        refuse_step(self.step)

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "step": self.step}

    def prepare(self, loss: PerSampleLoss, probe: Probe) -> Measure:
        raise not_of_self(self.name)

    def prepare_own(self, loss: PerSampleLoss, probe: SelfProbe | AcrossProbe) -> Measure:
        refuse_coupled(loss.task, "self-influence")
        probe = _of_one_state(probe)
        if probe.curvature is not None:
            raise DerivativeError(
                "these probes leave the curvature to the exact mode: measure them by diffin.self_influence(exact=True)"
            )
        values = torch.tensor([value for value, _ in probe.squares], dtype=torch.float64)
        directions = _stacked(probe, loss)

        def quadratic(products: Tensor) -> Tensor:
            return products.square() @ values.to(products.device)

        if probe.drift is None:
            return _unmoved(PerSampleGradients(loss), probe.rates, directions, quadratic)
        refuse_half_precision(loss)
        drift = vectors.like(probe.drift, loss.parameters)
        step = unit_step(loss.parameters, drift, self.step)
        if not step:  # nothing drifts, so that only the squares are left
            return _unmoved(PerSampleGradients(loss), dict.fromkeys(loss.parameters, 0.0), directions, quadratic)
        ahead, behind = (
            PerSampleGradients(loss, vectors.add(loss.parameters, drift, sign * step)) for sign in (1.0, -1.0)
        )

        def measure(batch: Batch) -> Measured:
            plus, minus = (side.sums(batch, probe.rates, directions) for side in (ahead, behind))
            along_drift = (plus.squares - minus.squares) / (4 * step)
            return Measured(
                (plus.losses + minus.losses) / 2, along_drift + quadratic((plus.products + minus.products) / 2)
            )

        return measure


@dataclass(frozen=True)
class OwnExact:
    """The same by products with Hessians, sample by sample: slow, to check others by.

    Where a probe names a curvature set, the squares are the whole of its Hessian, ``< E g_z, H_B E g_z >``.

    Attributes:
        curvature: (size or 0 for all, key of the draw) -> the curvature set.
    """

    curvature: Callable[[tuple[int, ...]], SampleSet]
    name: ClassVar[str] = "own-exact"

    def describe(self) -> dict[str, Any]:
        return {"name": self.name}

    def prepare(self, loss: PerSampleLoss, probe: Probe) -> Measure:
        raise not_of_self(self.name)

    def prepare_own(self, loss: PerSampleLoss, probe: SelfProbe | AcrossProbe) -> Measure:
        refuse_coupled(loss.task, "self-influence")
        probe = _of_one_state(probe)
        samples = None if probe.curvature is None else self.curvature(probe.curvature)
        drift = None if probe.drift is None else vectors.like(probe.drift, loss.parameters)

        def one(batch: Batch) -> tuple[Vector, float]:
            """E g_z, and everything but the curvature set's share."""
            alone = SampleSet(lambda: (batch,), "the sample")
            gradient = mean_gradient(loss, alone).gradient
            rated = vectors.scale(gradient, probe.rates)
            moved = gradient if drift is None else hessian_vector_product(loss, alone, drift)
            squares = (value * vectors.dot(gradient, vectors.like(v, gradient)) ** 2 for value, v in probe.squares)
            return rated, vectors.dot(rated, moved) + sum(squares)

        def some(batch: Batch) -> list[float]:
            found = [one(select(batch, slice(i, i + 1))) for i in range(batch_size(batch))]
            if samples is None:
                return [value for _, value in found]
            products = hessian_vector_products(loss, samples, [rated for rated, _ in found])
            return [value + vectors.dot(rated, p) for (rated, value), p in zip(found, products, strict=True)]

        def measure(batch: Batch) -> Measured:
            with torch.no_grad():
                losses = as_float64(loss(loss.parameters, batch))
            derivatives = torch.full_like(losses, float("nan"))
            # As many gradients as are held at once.
            for rows in torch.split(torch.isfinite(losses).nonzero().flatten(), _AT_ONCE):
                derivatives[rows] = derivatives.new_tensor(some(select(batch, rows)))
            return Measured(losses, derivatives)

        return measure


def _unmoved(
    gradients: PerSampleGradients,
    rates: dict[str, float],
    directions: Vector | None,
    quadratic: Callable[[Tensor], Tensor],
) -> Measure:
    def measure(batch: Batch) -> Measured:
        sums: Sums = gradients.sums(batch, rates, directions)
        return Measured(sums.losses, sums.squares + quadratic(sums.products))

    return measure


def _stacked(probe: SelfProbe, loss: PerSampleLoss) -> Vector | None:
    if not probe.squares:
        return None
    return {name: torch.stack([v[name].to(t) for _, v in probe.squares]) for name, t in loss.parameters.items()}


def _of_one_state(probe: SelfProbe | AcrossProbe) -> SelfProbe:
    if not isinstance(probe, SelfProbe):
        raise DerivativeError("these probes compare two states, which takes no differences; pass derivatives='auto'")
    return probe


def not_of_self(name: str) -> DerivativeError:
    return DerivativeError(
        f"derivatives={name!r} measures self-influence, and these are probes of a query; pass 'auto', 'difference', "
        "'forward' or 'ghost'"
    )
