"""Self-influence by differentiating through the training, segment by segment, as probes: a map over samples.

With the gradient of the sample itself as the query of :class:`diffin.Unrolled`, its influence on its own final loss is

    I(z, z)  =  (1 / N) sum over segments l of  < D_l g_z(end), g_z(theta_l) >,

D_l the linear map that carries a gradient from the end of the training to the direction of segment l. A map is not found by
carrying one vector, but the gradients of all samples lie largely in a space of few dimensions, in which the Hessian
is large too: u_1 to u_r span the Krylov space of the Hessian at the end, grown from leading combinations of gradients of
some samples. They are carried together (:mod:`diffin.estimators.together`), through a space of r dimensions at each
checkpoint, r products with the Hessian. On what is left of a gradient, D_l is taken to be a diagonal d_l: the optimizer's
preconditioner times the answer that the remainders of some gradients get on average, by Gauss quadrature of a few Lanczos
steps from random combinations of them. So, with a_j = < u_j, g_z(end) >,

    I(z, z)  ~=  (1 / N) sum over l of ( < d_l g_z(end), g_z >  +  sum over j of  a_j < D_l u_j - d_l u_j, g_z > ),

which :mod:`diffin.derivatives.across` measures. Nothing of it is of a single sample; with r the number of parameters it is
exact, and is then what :func:`diffin.attribute` says of each sample as a query of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch

from diffin import stacks, vectors
from diffin.across_probes import AcrossProbe, End
from diffin.batches import Batch, batch_size, nbytes, select
from diffin.derivatives.gradient import SampleSet
from diffin.derivatives.hessian import HessianProduct
from diffin.derivatives.krylov import Space, krylov
from diffin.derivatives.lanczos import lanczos
from diffin.derivatives.per_sample import PerSampleGradients
from diffin.errors import DatasetError, DiffinError
from diffin.estimators import segments
from diffin.estimators.base import Built, Carried, ProbingEstimator, Run
from diffin.estimators.response import Response
from diffin.estimators.segments import Segment, root_of_preconditioner
from diffin.estimators.self_influence import check_rank
from diffin.estimators.together import Passed, add_space, bent, flat, leading, through_diagonal
from diffin.estimators.unrolled import Unrolled
from diffin.probes import CheckpointProbes
from diffin.progress import Phase
from diffin.sources import Source
from diffin.task import PerSampleLoss, Task, frozen
from diffin.trajectory import Trajectory
from diffin.vectors import Vector

_log = logging.getLogger(__name__)

RANK = 64
BYTES = 2**28
"""What the directions take at most; while they are built there is about fourteen times that in use."""

_SAMPLES = 4
"""Gradients that the space is grown from, for each of its dimensions."""

_AT_ONCE = 16

_GROWN = 3
"""Products for each of the vectors that the space at the end is grown from."""

_COMBINATIONS = 4
_QUADRATURE = 3
"""Random combinations of the remainders, and Lanczos steps from each."""


@dataclass(frozen=True)
class SelfUnrolled(ProbingEstimator):
    """Builds the probes of self-influence by :class:`diffin.Unrolled`.

    Attributes:
        of: the estimator whose query becomes the sample itself; its ``rank`` and ``states`` play no part.
        rank: r, directions that are carried exactly, and products with the Hessian at each checkpoint. A probe is as many
            times as large as the model.
    """

    of: Unrolled
    rank: int = RANK

    name: ClassVar[str] = "self-influence"
    needs_query: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.of.propagation == "steps":
            raise DiffinError(
                "Unrolled(propagation='steps') walks the whole training for every query, here for every sample; pass "
                "propagation='segments', or ask about some samples with diffin.attribute"
            )
        check_rank(self.rank, "directions that the curvature is followed along")

    def describe(self) -> dict[str, Any]:
        of = self.of
        return {
            "name": self.name, "of": of.name, "rank": self.rank, "curvature_samples": of.curvature_samples,
            "seed": of.seed, "hessian": of.hessian,
        }  # fmt: skip

    def resolved(self, task: Task, trajectory: Trajectory, train: Source) -> SelfUnrolled:
        return replace(self, of=replace(self.of, propagation="segments").resolved(task, trajectory, train))

    def steps(self, trajectory: Trajectory) -> tuple[int, ...]:
        return tuple(checkpoint.step for checkpoint in trajectory.checkpoints)

    def build(self, run: Run, built: Built, bar: Phase) -> Iterator[tuple[CheckpointProbes, Carried]]:
        end, through = self._prepared(run, built)
        samples, seed = self.of.curvature_samples, self.of.seed
        found = segments.carry(run, built, bar, lambda _: _with_ones(end.basis), through, samples=samples, seed=seed)
        for checkpoint, carried in found:
            (probe,) = checkpoint.probes
            rest = {name: t[-1] for name, t in probe.u.items()}
            directions = {name: t[:-1] - rest[name] * end.basis[name].to(t) for name, t in probe.u.items()}
            across = AcrossProbe(probe.weight, end, rest, directions)
            yield CheckpointProbes(checkpoint.step, checkpoint.state, (), (across,)), carried
            del checkpoint, probe, directions, across  # stacks, each as large as what is needed next

    def _prepared(self, run: Run, built: Built) -> tuple[End, segments.Through]:
        """What is shared by the checkpoints, and what passes a segment."""
        assert self.of.hessian != "auto"  # it is `resolved` that is asked
        missing = not all(built.has(checkpoint.step) for checkpoint in run.trajectory.checkpoints)
        with frozen(run.task.model):
            state = (run.trajectory.final or run.trajectory.checkpoints[-1]).state
            loss = PerSampleLoss(run.task, state, run.names)
            gradients = self._gradients(run, loss) if missing else {}
            end = built.end() or End(state, self._basis(run, loss, gradients))
            combinations = _combinations(gradients, end.basis, self.of.seed)
        return end, partial(_through, combinations=combinations, hessian=self.of.hessian)

    def _gradients(self, run: Run, loss: PerSampleLoss) -> Vector:
        """Of some training samples at the end, stacked, without those that are not finite."""
        count = min(_SAMPLES * self.rank, _most(loss))
        total = {name: t.new_zeros((count, *t.shape)) for name, t in loss.parameters.items()}
        gradients, filled = PerSampleGradients(loss), 0
        drawn = run.draw(count, self.of.seed, run.trajectory.total_steps, 1)
        for few in (few for batch in drawn.read() for few in _in_pieces(batch)):
            losses, rows = gradients.rows(loss.to_device(few))
            usable = torch.isfinite(losses).nonzero().flatten()[: count - filled]
            for name, row in rows:
                # Of a finite loss hardly any gradient overflows; what does says nothing.
                total[name][filled : filled + len(usable)] = row[usable.to(row.device)].nan_to_num(0.0, 0.0, 0.0)
            filled += len(usable)
        if not filled:
            raise DatasetError("no loss of the samples that were drawn is finite; look at the samples and the model")
        return {name: t[:filled] for name, t in total.items()}

    def _basis(self, run: Run, loss: PerSampleLoss, gradients: Vector) -> Vector:
        """u_1 to u_r."""
        assert self.of.hessian != "auto"
        rank = min(self.rank, _most(loss))
        if rank < self.rank:
            _log.warning(
                "self-influence by Unrolled goes by %d directions instead of %d: of a model of this size, more take over %d "
                "MiB; parameters= can leave some of it out", rank, self.rank, BYTES >> 20,
            )  # fmt: skip
        starts = leading(gradients, max(1, rank // _GROWN))
        if starts is None:  # nothing to explain
            return {name: torch.zeros_like(t[:1]) for name, t in gradients.items()}
        curvature = run.draw(self.of.curvature_samples, self.of.seed, run.trajectory.total_steps)
        return krylov(segments.multiplication(loss, curvature, self.of.hessian), starts, rank).basis


def _in_pieces(batch: Batch) -> Iterator[Batch]:
    """Of few samples, so that no more of their gradients are formed beside those that are kept."""
    return (select(batch, slice(start, start + _AT_ONCE)) for start in range(0, batch_size(batch), _AT_ONCE))


def _most(loss: PerSampleLoss) -> int:
    """How many vectors may be held as a stack."""
    return max(1, BYTES // max(1, sum(map(nbytes, loss.parameters.values()))))


def _with_ones(basis: Vector) -> Vector:
    """The adjoints at the end: those of the basis, and one whose course shows the diagonal that all else is carried by."""
    return {name: torch.cat([t, torch.ones_like(t[:1])]) for name, t in basis.items()}


def _combinations(gradients: Vector, basis: Vector, seed: int) -> Vector:
    """Sums with random signs of what the basis does not hold of some gradients, stacked; no gradients make none."""
    if not gradients:
        return {}
    basis = {name: t.to(gradients[name]) for name, t in basis.items()}
    shares = stacks.products(gradients, basis)
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], (_COMBINATIONS, len(shares)))
    weights = torch.from_numpy(signs)
    within = stacks.combined(weights @ shares, basis)
    return vectors.add(stacks.combined(weights, gradients), within, -1.0)


def _through(
    segment: Segment,
    loss: PerSampleLoss,
    curvature: SampleSet,
    parameters: Vector,
    buffer: Vector,
    *,
    combinations: Vector,
    hessian: HessianProduct,
) -> Passed:
    """The direction of a segment, and the adjoints at its start, for the basis and, last, for the diagonal."""
    scale = root_of_preconditioner(segment, loss, curvature)
    product = segments.preconditioned(segment, loss, curvature, scale, hessian)
    ahead = vectors.multiply(_basis_of(parameters), scale)
    count = len(next(iter(ahead.values())))
    starts = leading(ahead, count)
    del ahead
    space = None if starts is None else krylov(product, starts, count)
    left = {name: t.to(scale[name]) * parameters[name][-1] * scale[name] for name, t in combinations.items()}
    apart = _apart(segment, scale, product, space, left)
    passed = through_diagonal(segment, scale, apart, parameters, buffer)
    if space is not None:
        direction, before, memory = map(_basis_of, passed)
        add_space(segment, scale, space, apart, _basis_of(parameters), _basis_of(buffer), (direction, before, memory))
    return passed


def _basis_of(stack: Vector) -> Vector:
    """All but the diagonal; what is done to it in place is done to the stack."""
    return {name: t[:-1] for name, t in stack.items()}


def _apart(
    segment: Segment, scale: Vector, product: Callable[[Vector], Vector], space: Space | None, left: Vector
) -> dict[str, Response]:
    """What a segment makes of what the space does not hold: the mean over the curvatures of some vectors there."""
    if space is not None:
        held = space.coordinates(left)
        left = {name: t - space.part(name, held) for name, t in left.items()}
    spectra = [lanczos(product, one, _QUADRATURE) for one in stacks.unstacked(left) if vectors.norm(one) > 0]
    if not spectra:
        return flat(segment, scale)
    curvatures = np.concatenate([spectrum.values for spectrum in spectra])
    shares = np.concatenate([spectrum.start**2 for spectrum in spectra])
    return bent(segment, scale, curvatures, shares / shares.sum())
