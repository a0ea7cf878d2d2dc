"""MoSo: what moving one sample out would do to the training risk.

Tan et al., "Data Pruning via Moving-one-Sample-out" (NeurIPS 2023): the gradient products of TracIn with the training
risk as the query.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from diffin.derivatives.gradient import mean_gradient
from diffin.errors import DiffinError
from diffin.estimators.base import LocalEstimator, Moment
from diffin.estimators.tracin import first_order_probe
from diffin.probes import Probe


@dataclass(frozen=True)
class MoSo(LocalEstimator):
    """First-order influence on the training risk; no query set is needed.

    Attributes:
        samples: how many training samples stand for the risk, drawn anew at every checkpoint; ``None`` for all.
        seed: of that draw.
    """

    samples: int | None = 2048
    seed: int = 0

    name: ClassVar[str] = "moso"
    needs_query: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.samples is not None and self.samples < 1:
            raise DiffinError(f"MoSo(samples={self.samples}): pass 1 or more, or None for the whole training set")
        if self.seed < 0:
            raise DiffinError(f"MoSo(seed={self.seed}): pass 0 or more")

    def probes(self, at: Moment) -> tuple[Probe, ...]:
        risk = at.draw(self.samples, self.seed, at.step)
        return (first_order_probe(at, mean_gradient(at.loss, risk).gradient),)
