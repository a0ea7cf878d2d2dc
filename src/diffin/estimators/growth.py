"""Noticing an adjoint that outgrows its beginning on the way back through a training.

A step of gradient descent multiplies an adjoint by I - eta H. Where eta H has eigenvalues between 0 and 2 none grows; along
negative curvature, and where a step is longer than the curvature bears, it grows with every step, until what is said of the
early training drowns all else. The exact derivative of such a run grows like that, too: it holds for changes of a weight that
are smaller than any in practice, and says little of leaving a sample out.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from diffin import vectors
from diffin.derivatives.hessian import HessianProduct
from diffin.rerun import Adjoint

_log = logging.getLogger(__name__)

MOST = 1000.0
"""In trainings that do not explode, adjoints grew about tenfold at most."""


class Growth:
    """Compares adjoints with the first ones that it is shown, those of the end of the training, and warns once.

    Args:
        hessian: how products were taken; it decides what is advised.
    """

    def __init__(self, hessian: HessianProduct) -> None:
        self._hessian = hessian
        self._ends: list[float] = []
        self._told = False

    def look(self, step: int, adjoints: Sequence[Adjoint]) -> None:
        """Look at the adjoints of some numbers, with respect to the state before ``step``."""
        if self._told:
            return
        sizes = [vectors.norm(adjoint.parameters) for adjoint in adjoints]
        if not self._ends:
            self._ends = sizes
            return
        worst = max((size / end for size, end in zip(sizes, self._ends, strict=True) if end > 0), default=0.0)
        if worst > MOST:
            self._told = True
            _log.warning(
                "carried back to step %d, the derivative of the query by the parameters grew %.0e-fold: the terms of early "
                "steps drown all others, and scores are those of a few erratic steps; %s", step, worst, self._advice(),
            )  # fmt: skip

    def _advice(self) -> str:
        clipped = "propagation='segments', which clips the curvature"
        if self._hessian == "gauss-newton":
            return f"they were longer than the curvature bears: pass Unrolled({clipped})"
        return f"pass Unrolled(hessian='gauss-newton'), which is steadier, or {clipped}"
