"""Carrying adjoints of a training backwards through every recorded step, and gathering directions in blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from diffin import vectors
from diffin.derivatives.gradient import SampleSet
from diffin.derivatives.hessian import HessianProduct
from diffin.estimators.base import Built, Carried, Run
from diffin.estimators.growth import Growth
from diffin.estimators.replay import query_adjoint
from diffin.estimators.segments import nearest
from diffin.probes import CheckpointProbes, Probe
from diffin.progress import Phase
from diffin.rerun import Adjoint, Rerun, State
from diffin.rerun.products import carry_back
from diffin.rerun.walk import backwards
from diffin.vectors import Vector


@dataclass(frozen=True)
class Block:
    """Consecutive steps, walked, and what Q numbers say of their gradients.

    Attributes:
        step: steps taken before the state where samples are measured.
        state: every tensor of the model there.
        directions: of each number with respect to the gradients of the steps, summed; of the studied parameters.
        adjoints: of each number, at the first step.
    """

    step: int
    state: dict[str, Tensor]
    directions: list[Vector]
    adjoints: list[Adjoint]


def states(count: int, total_steps: int) -> tuple[int, ...]:
    """``floor(T ((j + 1/2) / count)^2)``, distinct: where samples are measured. Each stands for the steps nearest to it."""
    return tuple(sorted({(2 * j + 1) ** 2 * total_steps // (4 * count**2) for j in range(count)}))


def build(
    run: Run, built: Built, bar: Phase, count: int, hessian: HessianProduct
) -> Iterator[tuple[CheckpointProbes, Carried]]:
    """The probes of every block, last first; what is carried is the adjoint at its first step."""
    assert run.query is not None  # build_probes has refused by now
    for block in walk(run, [run.query], built, bar, count, hessian, lambda carried: [Adjoint.unpacked(carried)]):
        probe = Probe(1 / run.dataset_size, block.directions[0])
        yield CheckpointProbes(block.step, block.state, (probe,)), block.adjoints[0].packed()


def walk(
    run: Run,
    queries: Sequence[SampleSet],
    built: Built,
    bar: Phase,
    count: int,
    hessian: HessianProduct,
    unpack: Callable[[dict[str, Tensor]], list[Adjoint]],
) -> Iterator[Block]:
    """Walk the training once with the adjoints of the mean losses of Q queries; the blocks that are missing, last first.

    Args:
        run: the training; its own query is not looked at.
        queries: what is asked about, each at the price of one more product with the Hessian a step.
        built: the blocks that an interrupted walk has left.
        bar: to advance by twice the number of steps.
        count: of the blocks.
        hessian: how products are taken.
        unpack: makes the adjoints out of what was carried beside a block.
    """
    trajectory = run.trajectory
    rerun = Rerun(run.task, trajectory, run.train, ranks=run.ranks)
    chosen = states(count, trajectory.total_steps)
    ranges = dict(zip(chosen, nearest(chosen, trajectory.total_steps), strict=True))
    missing = [step for step in chosen if not built.has(step)]
    if not missing:
        return
    # What is there before the last missing one has to be walked again all the same.
    pending = [step for step in chosen if step <= missing[-1]]
    until = ranges[pending[-1]][1]
    later = chosen[len(pending) :]
    adjoints: list[Adjoint] = []
    growth = Growth(hessian)
    if later:
        adjoints = [adjoint.to(rerun.loss.device) for adjoint in unpack(built.carried(later[0]))]
    bar.advance(2 * (trajectory.total_steps - until))
    totals = [vectors.zeros_like(rerun.loss.parameters) for _ in queries]
    state: Mapping[str, Tensor] = {}
    keep = hessian != "exact" or rerun.shared
    with rerun.entered():
        if later:  # What has grown so far has grown since the end.
            end = rerun.state(trajectory.stored[-1])
            growth.look(trajectory.total_steps, [query_adjoint(rerun, end, query) for query in queries])
            growth.look(until, adjoints)
        for stretch in backwards(rerun, until=until, keep_gradients=keep, advance=bar.advance):
            if not adjoints:
                adjoints = [query_adjoint(rerun, stretch.end, query) for query in queries]
                growth.look(until, adjoints)
            gradients = stretch.end.gradients
            for at in stretch.states:
                adjoints, directions = _step_back(rerun, at, adjoints, gradients, hessian)
                gradients = at.gradients
                for total, direction in zip(totals, directions, strict=True):
                    for name, part in direction.items():
                        total[name] += part
                if at.step == pending[-1]:
                    state = {**rerun.loss.rest, **at.parameters, **at.buffers}
                if at.step == ranges[pending[-1]][0]:
                    growth.look(at.step, adjoints)
                    gathered = [{name: total[name] for name in run.names} for total in totals]
                    yield Block(pending.pop(), dict(state), gathered, adjoints)
                    totals = [vectors.zeros_like(rerun.loss.parameters) for _ in queries]
                bar.advance()


def _step_back(
    rerun: Rerun, at: State, adjoints: list[Adjoint], gradients: Vector | None, hessian: HessianProduct
) -> tuple[list[Adjoint], list[Vector]]:
    """Adjoints before a step, and its directions; a step that was skipped has none and changes nothing."""
    nothing: list[Vector] = [{} for _ in adjoints]
    if hessian == "exact" and not rerun.shared:
        pulled = rerun.pull_back(at, adjoints)
        return (adjoints, nothing) if pulled is None else (pulled.adjoints, pulled.directions)
    if gradients is None:
        return adjoints, nothing
    carried = [carry_back(rerun, at, adjoint, gradients, hessian=hessian) for adjoint in adjoints]
    return [before for before, _ in carried], [direction for _, direction in carried]
