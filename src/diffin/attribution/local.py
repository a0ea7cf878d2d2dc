"""Directions of many queries by the estimators that know a checkpoint from itself alone: TracIn and DiffIn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from diffin import stacks
from diffin.attribution.queries import Queries
from diffin.derivatives.gradient import mean_gradient
from diffin.derivatives.hessian import hessian_vector_product
from diffin.derivatives.products import hessian_vector_products
from diffin.estimators import DiffIn, TracIn
from diffin.estimators.base import LocalEstimator, Moment
from diffin.estimators.tracin import first_order_probe
from diffin.probes import Probe
from diffin.vectors import Vector


@dataclass(frozen=True)
class ForAll(LocalEstimator):
    """The probes of an estimator, with the directions of all queries stacked.

    Attributes:
        estimator: whose.
        queries: which.
    """

    estimator: TracIn | DiffIn
    queries: Queries

    name: ClassVar[str] = "for-all"

    def probes(self, at: Moment) -> tuple[Probe, ...]:
        gradients = self.queries.gradients(at.loss)
        if isinstance(self.estimator, TracIn):
            return (first_order_probe(at, gradients),)
        return _second_order(self.estimator, at, gradients)


def _second_order(estimator: DiffIn, at: Moment, gradients: Vector) -> tuple[Probe, ...]:
    """The probes of :class:`diffin.DiffIn`: u and v of every query, and d, which they share."""
    weight = estimator.weight(at)
    v = at.rated(gradients)
    probes = []
    for number in range(estimator.batches):
        batch = at.draw(estimator.batch_size, estimator.seed, at.step, number)
        d = at.rated(mean_gradient(at.loss, batch).gradient)
        if estimator.hessian == "exact":
            curved = hessian_vector_products(at.loss, batch, stacks.unstacked(v))
        else:
            method = estimator.hessian
            curved = [hessian_vector_product(at.loss, batch, one, method=method) for one in stacks.unstacked(v)]
        probes.append(Probe(weight, at.rated(stacks.stacked(curved)), (v, d)))
    return tuple(probes)
