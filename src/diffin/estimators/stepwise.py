"""Carrying the adjoint of a training backwards through every recorded step, and gathering directions in blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from diffin import vectors
from diffin.derivatives.hessian import HessianProduct
from diffin.estimators.base import Built, Carried, Run
from diffin.estimators.replay import query_adjoint
from diffin.estimators.segments import nearest
from diffin.probes import CheckpointProbes, Probe
from diffin.progress import Phase
from diffin.rerun import Adjoint, Rerun
from diffin.rerun.differenced import carry_back
from diffin.rerun.walk import backwards
from diffin.vectors import Vector


def states(count: int, total_steps: int) -> tuple[int, ...]:
    """``floor(T ((j + 1/2) / count)^2)``, distinct: where samples are measured. Each stands for the steps nearest to it."""
    return tuple(sorted({(2 * j + 1) ** 2 * total_steps // (4 * count**2) for j in range(count)}))


def build(
    run: Run, built: Built, bar: Phase, count: int, hessian: HessianProduct
) -> Iterator[tuple[CheckpointProbes, Carried]]:
    """The probes of every block, last first; what is carried is the adjoint at its first step."""
    trajectory = run.trajectory
    rerun = Rerun(run.task, trajectory, run.train)
    chosen = states(count, trajectory.total_steps)
    ranges = dict(zip(chosen, nearest(chosen, trajectory.total_steps), strict=True))
    missing = [step for step in chosen if not built.has(step)]
    if not missing:
        return
    # What is there before the last missing one has to be walked again all the same.
    pending = [step for step in chosen if step <= missing[-1]]
    until = ranges[pending[-1]][1]
    later = chosen[len(pending) :]
    adjoint = None if not later else Adjoint.unpacked(built.carried(later[0])).to(rerun.loss.device)
    bar.advance(2 * (trajectory.total_steps - until))
    total: Vector = vectors.zeros_like(rerun.loss.parameters)
    state: Mapping[str, Tensor] = {}
    with rerun.entered():
        for stretch in backwards(rerun, until=until, keep_gradients=hessian == "difference", advance=bar.advance):
            if adjoint is None:
                assert run.query is not None  # build_probes has refused by now
                adjoint = query_adjoint(rerun, stretch.end, run.query)
            gradients = stretch.end.gradients
            for at in stretch.states:
                direction: Vector = {}
                if hessian == "exact":
                    pulled = rerun.pull_back(at, [adjoint])
                    if pulled is not None:
                        adjoint, direction = pulled.adjoints[0], pulled.directions[0]
                elif gradients is not None:
                    adjoint, direction = carry_back(rerun, at, adjoint, gradients)
                gradients = at.gradients
                for name, part in direction.items():
                    total[name] += part
                if at.step == pending[-1]:
                    state = {**rerun.loss.rest, **at.parameters, **at.buffers}
                if at.step == ranges[pending[-1]][0]:
                    step = pending.pop()
                    probe = Probe(1 / run.dataset_size, {name: total[name] for name in run.names})
                    yield CheckpointProbes(step, dict(state), (probe,)), adjoint.packed()
                    total = vectors.zeros_like(rerun.loss.parameters)
                bar.advance()
