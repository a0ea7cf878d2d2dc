"""The parameter influence of estimators that know one state at a time.

Each is what its probes say of a sample, without the query: with G_Z the sum of the gradients of a set Z at a checkpoint, E
the learning rates, and B a proxy batch,

    TracIn          -(T / (m N)) sum over t of  E G_Z
    DiffIn (Eq. 9)  -(1 / (m N)) sum over t of  t ( E H_B E G_Z + E H_Z E g_B )
    InverseHessian  -(1 / N) (H + delta)^-1 G_Z                                       at the end

so that two products with a Hessian are enough at a checkpoint, however many samples there are.
"""

from __future__ import annotations

from collections.abc import Iterator

from diffin import vectors
from diffin.derivatives.gradient import SampleSet, mean_gradient
from diffin.derivatives.hessian import hessian_vector_product
from diffin.errors import DiffinError
from diffin.estimators.base import LocalEstimator, Moment, Run
from diffin.estimators.diffin import DiffIn
from diffin.estimators.inverse_hessian import InverseHessian, last_state
from diffin.estimators.tracin import TracIn, first_order_weight
from diffin.progress import Phase
from diffin.task import PerSampleLoss, frozen
from diffin.vectors import Vector


def summed_gradient(loss: PerSampleLoss, samples: SampleSet) -> Vector:
    """G_Z: the sum of the gradients of the samples. Use it inside :func:`diffin.task.frozen`."""
    found = mean_gradient(loss, samples)
    return vectors.scale(found.gradient, found.count)


def terms(run: Run, samples: SampleSet, estimator: LocalEstimator, bar: Phase) -> Iterator[Vector]:
    """What a local estimator says at every checkpoint, ascending; the change of the parameters is the sum.

    Raises:
        DiffinError: the estimator is one of the query alone.
        TrajectoryError: the trajectory lacks what it needs.
    """
    for checkpoint in run.trajectory.checkpoints:
        with frozen(run.task.model):
            yield _term(run.moment(checkpoint), samples, estimator)
        bar.advance()


def _term(at: Moment, samples: SampleSet, estimator: LocalEstimator) -> Vector:
    if isinstance(estimator, TracIn):
        return vectors.scale(at.rated(summed_gradient(at.loss, samples)), first_order_weight(at))
    if isinstance(estimator, DiffIn):
        return _second_order(at, samples, estimator)
    raise DiffinError(
        f"{type(estimator).__name__} differs from TracIn in what is asked about, not in what it says of the parameters; pass "
        "estimator=diffin.TracIn(), or diffin.Unrolled(), which is more accurate"
    )


def _second_order(at: Moment, samples: SampleSet, estimator: DiffIn) -> Vector:
    weight = estimator.weight(at)
    found = mean_gradient(at.loss, samples)
    summed = at.rated(vectors.scale(found.gradient, found.count))
    total = vectors.zeros_like(at.loss.parameters)
    for number in range(estimator.batches):
        batch = at.draw(estimator.batch_size, estimator.seed, at.step, number)
        drift = at.rated(mean_gradient(at.loss, batch).gradient)
        curved = hessian_vector_product(at.loss, batch, summed, method=estimator.hessian)
        of_samples = hessian_vector_product(at.loss, samples, drift, method=estimator.hessian)
        total = vectors.add(total, vectors.add(curved, of_samples, found.count))
    return vectors.scale(at.rated(total), weight)


def at_the_end(run: Run, samples: SampleSet, estimator: InverseHessian, bar: Phase) -> Vector:
    """-(1 / N) (H + delta)^-1 G_Z at the last stored state."""
    with frozen(run.task.model):
        loss = run.loss(last_state(run.trajectory))
        solution = estimator.solve(run, loss, summed_gradient(loss, samples), bar)
    return vectors.scale(solution, -1 / run.dataset_size)
