"""TracIn: first-order influence, the sum of what each step on a sample did to the query loss.

Pruthi et al., "Estimating Training Data Influence by Tracing Gradient Descent" (NeurIPS 2020), TracInCP. In the words of
the difference recursion: the change per step with the curvature term dropped, ``d_t = -(eta_t / N) g_z``, each checkpoint
standing for T/m steps:

    I(z, V) = -(T / m) sum over t in T_m of (eta_t / N) < g_V, g_z >.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from diffin.estimators.base import LocalEstimator, Moment
from diffin.probes import Probe


def first_order_weight(at: Moment) -> float:
    """``-T / (m N)``: each checkpoint stands for T/m steps."""
    return -at.total_steps / (at.checkpoints * at.dataset_size)


def first_order_probe(at: Moment, direction: dict[str, Tensor]) -> Probe:
    """The probe of ``-(T / (m N)) < E direction, g_z >``."""
    return Probe(first_order_weight(at), at.rated(direction))


@dataclass(frozen=True)
class TracIn(LocalEstimator):
    """Gradient products with the query, over checkpoints."""

    name: ClassVar[str] = "tracin"

    def probes(self, at: Moment) -> tuple[Probe, ...]:
        return (first_order_probe(at, at.query_gradient()),)
