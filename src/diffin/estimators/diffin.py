"""Diff-In: the change of a sample's influence between consecutive steps, to second order, summed over checkpoints.

Eq. 9 of Tan et al., "Understanding Data Influence with Differential Approximation" (TPAMI 2026, arXiv 2508.14648), for a
query V at m checkpoints T_m, with eta_t the learning rate of the step after checkpoint t:

    I(z, V) = sum over t in T_m of a_t < g_V, H_B g_z + H_z g_B >,        a_t = -t eta_t^2 / (N m).

H is symmetric, so that everything about the sample is two directional derivatives of its own loss,

    < g_V, H_B g_z + H_z g_B >  =  D_u l_z + D2_{g_V, g_B} l_z            with u = H_B g_V,

and u, g_V and g_B are the same for all samples: one probe a checkpoint and proxy batch. Where parameter groups have
learning rates E of their own, the derivation gives u = E H_B E g_V, v = E g_V and d = E g_B.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, get_args

from diffin.derivatives.gradient import mean_gradient
from diffin.derivatives.hessian import PRODUCTS, HessianProduct, hessian_vector_product
from diffin.errors import DiffinError, TrajectoryError
from diffin.estimators.base import LocalEstimator, Moment
from diffin.probes import Probe


@dataclass(frozen=True)
class DiffIn(LocalEstimator):
    """The estimator of the paper, in its form accelerated by checkpoints (Eq. 9).

    It assumes a run that has settled, a steady learning rate, slowly changing curvature and T eta H << 1; see the
    documentation on where that holds.

    Attributes:
        batch_size: size of the proxy batch B that stands for the training batch at a checkpoint; ``None`` for the whole
            training set. All samples meet the same batch.
        batches: proxy batches per checkpoint, averaged; each costs one more probe.
        seed: of the draw of the proxy batches.
        hessian: how the product H_B g_V is taken: ``"exact"``, or ``"difference"``, the paper's finite difference of
            gradients (central), which needs no second derivative of the model, and a loss without kinks.
    """

    batch_size: int | None = 512
    batches: int = 1
    seed: int = 0
    hessian: HessianProduct = "exact"

    name: ClassVar[str] = "diffin"

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            raise DiffinError(
                f"DiffIn(batch_size={self.batch_size}): pass 1 or more, or None for the whole training set"
            )
        if self.batches < 1 or (self.batches > 1 and self.batch_size is None):
            raise DiffinError(
                f"DiffIn(batches={self.batches}): pass 1 or more; 1 where batch_size is None, as all batches are the same"
            )

        if self.seed < 0:
            raise DiffinError(f"DiffIn(seed={self.seed}): pass 0 or more")
        if self.hessian not in get_args(HessianProduct):
            raise DiffinError(f"DiffIn(hessian={self.hessian!r}): pass {PRODUCTS}")

    def weight(self, at: Moment, equation: str = "Eq. 9") -> float:
        """``-t / (N m)``, shared among the proxy batches; the learning rates are in the directions.

        Raises:
            TrajectoryError: that is zero at the only checkpoint there is.
        """
        if at.step == 0 and at.checkpoints == 1:
            raise TrajectoryError(
                f"{equation} weighs a checkpoint by the steps before it, and the only one has none; record a later one"
            )
        return -at.step / (at.dataset_size * at.checkpoints * self.batches)

    def probes(self, at: Moment) -> tuple[Probe, ...]:
        weight = self.weight(at)
        v = at.rated(at.query_gradient())
        probes = []
        for number in range(self.batches):
            batch = at.draw(self.batch_size, self.seed, at.step, number)
            d = at.rated(mean_gradient(at.loss, batch).gradient)
            u = at.rated(hessian_vector_product(at.loss, batch, v, method=self.hessian))
            probes.append(Probe(weight, u, (v, d)))
        return tuple(probes)
