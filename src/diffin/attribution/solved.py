"""Directions of many queries by the inverse Hessian: one linear system each, at the same state."""

from __future__ import annotations

from collections.abc import Iterator

from diffin import stacks
from diffin.attribution.queries import Queries
from diffin.estimators import InverseHessian
from diffin.estimators.base import Built, Carried, Run
from diffin.estimators.inverse_hessian import last_state
from diffin.probes import CheckpointProbes, Probe
from diffin.progress import Phase
from diffin.task import frozen


def build(
    estimator: InverseHessian, run: Run, queries: Queries, built: Built, bar: Phase
) -> Iterator[tuple[CheckpointProbes, Carried]]:
    """The probe of the last stored state, with the solutions of all queries stacked."""
    last = last_state(run.trajectory)
    if built.has(last.step):
        bar.advance(len(queries) * estimator.iterations)
        return
    with frozen(run.task.model):
        loss = run.loss(last)
        targets = queries.gradients(loss)
        solutions = [estimator.solve(run, loss, target, bar) for target in stacks.unstacked(targets)]
    yield CheckpointProbes(last.step, last.state, (Probe(-1 / run.dataset_size, stacks.stacked(solutions)),)), {}
