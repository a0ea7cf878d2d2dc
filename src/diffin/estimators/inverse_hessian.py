"""The influence function: what removing a sample would do to a loss at its minimum.

Koh and Liang, "Understanding Black-box Predictions via Influence Functions" (ICML 2017). At the final parameters, with H
the Hessian of the training loss there (coupled weight decay included) and delta the damping,

    I(z, V) = -(1 / N) < (H + delta)^-1 g_V, g_z >.

It assumes that training ended at a minimum of a convex loss. The damping stands in for both; results depend on it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from diffin import vectors
from diffin.derivatives.hessian import PRODUCTS, HessianProduct, hessian_vector_product
from diffin.errors import DerivativeError, DiffinError
from diffin.estimators.base import Built, Carried, ProbingEstimator, Run
from diffin.probes import CheckpointProbes, Probe
from diffin.progress import Phase
from diffin.task import PerSampleLoss, frozen
from diffin.trajectory import Checkpoint, Trajectory
from diffin.vectors import Vector

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class InverseHessian(ProbingEstimator):
    """The classical influence function, at the last stored state.

    Attributes:
        solver: ``"cg"``, conjugate gradients on one curvature set; or ``"lissa"``, the stochastic recursion of Agarwal et al.
            (2017), which draws a new batch of the training set for every product.
        damping: delta, added to every curvature.
        iterations: products at most.
        tolerance: ``"cg"`` stops where the residual is this small, relative to g_V.
        samples: of the curvature set (``"cg"``; ``None`` for all), or of each batch (``"lissa"``, 64 for ``None``).
        seed: of the draws.
        hessian: how a product is taken, see :class:`diffin.DiffIn`.
    """

    solver: Literal["cg", "lissa"] = "cg"
    damping: float = 1e-2
    iterations: int = 100
    tolerance: float = 1e-3
    samples: int | None = None
    seed: int = 0
    hessian: HessianProduct = "exact"

    name: ClassVar[str] = "inverse-hessian"

    def __post_init__(self) -> None:
        if self.solver not in ("cg", "lissa"):
            raise DiffinError(f"InverseHessian(solver={self.solver!r}): pass 'cg' or 'lissa'")
        for name, least in (("damping", 0), ("tolerance", 0), ("seed", 0), ("iterations", 1), ("samples", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise DiffinError(f"InverseHessian({name}={value}): pass {least} or more")
        if self.hessian not in get_args(HessianProduct):
            raise DiffinError(f"InverseHessian(hessian={self.hessian!r}): pass {PRODUCTS}")

    def steps(self, trajectory: Trajectory) -> tuple[int, ...]:
        return (last_state(trajectory).step,)

    def work(self, trajectory: Trajectory) -> int:
        return self.iterations

    def build(self, run: Run, built: Built, bar: Phase) -> Iterator[tuple[CheckpointProbes, Carried]]:
        last = last_state(run.trajectory)
        if built.has(last.step):
            return
        with frozen(run.task.model):
            loss = run.loss(last)
            solution = self.solve(run, loss, run.query_gradient(loss), bar)
        yield CheckpointProbes(last.step, last.state, (Probe(-1 / run.dataset_size, solution),)), {}

    def solve(self, run: Run, loss: PerSampleLoss, target: Vector, bar: Phase) -> Vector:
        """``(H + delta)^-1 target``, H at the state of the loss. Use it inside :func:`diffin.task.frozen`."""
        solve = self._cg if self.solver == "cg" else self._lissa
        return solve(run, loss, _coupled_decay(run), target, bar)

    def _cg(self, run: Run, loss: PerSampleLoss, decay: dict[str, float], target: Vector, bar: Phase) -> Vector:
        curvature = run.draw(self.samples, self.seed)

        def product(vector: Vector) -> Vector:
            bar.advance()
            curved = hessian_vector_product(loss, curvature, vector, method=self.hessian)
            return vectors.add(vectors.add(curved, vectors.scale(vector, decay)), vector, self.damping)

        return conjugate_gradients(product, target, self.iterations, self.tolerance)

    def _lissa(self, run: Run, loss: PerSampleLoss, decay: dict[str, float], target: Vector, bar: Phase) -> Vector:
        def product(vector: Vector, draw: int) -> Vector:
            batch = run.draw(self.samples or 64, self.seed, draw)
            curved = hessian_vector_product(loss, batch, vector, method=self.hessian)
            return vectors.add(curved, vectors.scale(vector, decay))

        # The recursion converges where no curvature exceeds twice the scale; batches are steeper than their mean.
        direction = vectors.scale(target, 1 / (vectors.norm(target) or 1.0))
        steepest = 0.0
        for draw in range(10):
            curved = product(direction, draw)
            steepest = max(steepest, vectors.norm(curved))
            direction = vectors.scale(curved, 1 / (vectors.norm(curved) or 1.0))
        scale = 2 * steepest + self.damping
        # Where no batch bends downwards, a product and the target add up to this at most.
        most = 1.01 * vectors.norm(target) * scale / self.damping if self.damping else math.inf
        solution = target
        for draw in range(self.iterations):
            step = vectors.add(product(solution, 10 + draw), solution, self.damping)
            solution = vectors.add(vectors.add(target, solution), step, -1 / scale)
            bar.advance()
            if not vectors.norm(solution) <= most or not vectors.is_finite(solution):
                raise DerivativeError(
                    f"InverseHessian(solver='lissa') diverged after {draw + 1} products; pass a larger damping than "
                    f"{self.damping}, or solver='cg'"
                )
        return vectors.scale(solution, 1 / scale)


def conjugate_gradients(
    product: Callable[[Vector], Vector], target: Vector, iterations: int, tolerance: float
) -> Vector:
    """Solve ``A x = target`` for a positive definite A.

    Where A turns out to bend downwards, or the products run out, the answer is the iterate of smallest residual, with a
    warning: just before a downward bend the last one has exploded.
    """
    solution, residual = vectors.zeros_like(target), target
    direction, size = residual, vectors.dot(residual, residual)
    first = smallest = size
    best = solution
    for count in range(iterations):
        if size <= tolerance**2 * first or size == 0:
            return solution
        curved = product(direction)
        bend = vectors.dot(direction, curved)
        if bend <= 0:
            _log.warning(
                "the damped Hessian is not positive definite (found after %d products); the solution is that of smallest "
                "residual before, %.2g of the target; pass a larger damping", count + 1, (smallest / first) ** 0.5,
            )  # fmt: skip
            return best
        solution = vectors.add(solution, direction, size / bend)
        residual = vectors.add(residual, curved, -size / bend)
        previous, size = size, vectors.dot(residual, residual)
        if size < smallest:
            best, smallest = solution, size
        direction = vectors.add(residual, direction, size / previous)
    if smallest > tolerance**2 * first:
        _log.warning(
            "conjugate gradients stopped at a relative residual of %.2g after %d products; pass more iterations or a larger "
            "damping", (smallest / first) ** 0.5, iterations,
        )  # fmt: skip
    return best


def last_state(trajectory: Trajectory) -> Checkpoint:
    return trajectory.final or trajectory.checkpoints[-1]


def _coupled_decay(run: Run) -> dict[str, float]:
    """What weight decay adds to the curvature of each parameter, where it goes through the gradient."""
    optimizer, log = run.trajectory.optimizer, run.trajectory.steps
    decay = dict.fromkeys(run.names, 0.0)
    if optimizer is None or log is None or not optimizer.supported:
        return decay
    for group, constants in zip(optimizer.groups, log.constants(run.trajectory.total_steps - 1), strict=True):
        for name in group.names:
            if name in decay and not constants.get("decoupled_weight_decay", False):
                decay[name] = constants["weight_decay"]
    return decay
