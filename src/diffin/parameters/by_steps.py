"""Unrolled by steps and Replay, forward: the recorded training repeated with the tangent that a set of samples gives it.

States are recomputed one after another and never stored. Every step carries the derivative of parameters, buffers and
optimizer memory through the whole of itself (:mod:`diffin.rerun.tangent`), and adds what the samples push: for `Replay`,
their own part of its batch; for `Unrolled`, G_Z(theta_s) / N, the gradients of all of them at the state of its block,
whether or not they are in the batch.
"""

from __future__ import annotations

import torch

from diffin import vectors
from diffin.derivatives.gradient import SampleSet
from diffin.derivatives.hessian import HessianProduct
from diffin.errors import DerivativeError
from diffin.estimators import stepwise
from diffin.estimators.base import Run
from diffin.estimators.segments import nearest
from diffin.parameters.at_checkpoints import summed_gradient
from diffin.progress import Phase
from diffin.rerun import Rerun, State
from diffin.rerun.rerun import SATURATION
from diffin.rerun.tangent import Tangent, carry_forward
from diffin.sources import Indices
from diffin.task import PerSampleLoss, frozen
from diffin.vectors import Vector


class _Walk:
    """A recorded training, repeated from its start with a tangent beside it. Use it inside :meth:`Rerun.entered`."""

    def __init__(self, rerun: Rerun, bar: Phase) -> None:
        self.rerun, self._bar = rerun, bar
        self._stored = {checkpoint.step: checkpoint for checkpoint in rerun.trajectory.stored}
        self.state = self._anchor = rerun.state(self._stored[0])
        self.tangent = Tangent.zero(self.state)

    def ahead(self, step: int) -> State:
        """The state before a later step."""
        state = self.state
        while state.step < step:
            state = self.rerun.advance(state)
            # As the walk itself will, and as a walk backwards does: every stretch from the state that was stored.
            state = self.rerun.state(self._stored[state.step]) if state.step in self._stored else state
            self._bar.advance()
        return state

    def step(
        self,
        *,
        push: Vector | None = None,
        weights: torch.Tensor | None = None,
        hessian: HessianProduct = "exact",
        saturation: float,
    ) -> None:
        """Take a step; see :func:`diffin.rerun.tangent.carry_forward`.

        Raises:
            TrajectoryError: recomputed parameters are not the recorded ones.
            DerivativeError: a derivative is not finite.
        """
        self.state, self.tangent = carry_forward(
            self.rerun, self.state, self.tangent, push=push, weights=weights, hessian=hessian, saturation=saturation
        )
        stored = self._stored.get(self.state.step)
        if stored is not None:
            self.rerun.check(self.state, stored, self._anchor)
            if not self.tangent.is_finite():
                raise DerivativeError(
                    f"the derivative of the training is not finite before step {stored.step}: a loss overflowed, or an "
                    "operation of the model has an infinite derivative (a square root at zero)"
                )
            self.state = self._anchor = self.rerun.state(stored)
        self._bar.advance()


def work(states: int, total_steps: int) -> int:
    """Steps that :func:`unrolled` takes, those of looking ahead included."""
    chosen = stepwise.states(states, total_steps)
    ranges = nearest(chosen, total_steps)
    return total_steps + sum(step - start for step, (start, _) in zip(chosen, ranges, strict=True))


def unrolled(
    run: Run, samples: SampleSet, bar: Phase, *, states: int, hessian: HessianProduct
) -> tuple[State, Tangent]:
    """The end of the training, and its derivative, as `Unrolled` by steps has them.

    Raises:
        TrajectoryError: the training cannot be repeated.
        DerivativeError: a derivative cannot be taken.
    """
    rerun = Rerun(run.task, run.trajectory, run.train)
    chosen = stepwise.states(states, rerun.total_steps)
    with rerun.entered():
        walk = _Walk(rerun, bar)
        for step, (_, stop) in zip(chosen, nearest(chosen, rerun.total_steps), strict=True):
            at = walk.ahead(step)
            with frozen(run.task.model):
                loss = PerSampleLoss(run.task, {**rerun.loss.rest, **at.parameters, **at.buffers}, run.names)
                push = vectors.scale(summed_gradient(loss, samples), 1 / run.dataset_size)
            while walk.state.step < stop:
                walk.step(push=push, hessian=hessian, saturation=SATURATION)
    return walk.state, walk.tangent


def replayed(run: Run, chosen: Indices, bar: Phase, *, saturation: float) -> tuple[State, Tangent]:
    """The end of the training, and its derivative with respect to the weight of the chosen samples in their batches.

    Raises:
        TrajectoryError: the training cannot be repeated.
        DerivativeError: a derivative cannot be taken.
    """
    rerun = Rerun(run.task, run.trajectory, run.train)
    weights = torch.zeros(run.dataset_size, dtype=torch.float64, device=rerun.loss.device)
    weights[torch.from_numpy(chosen)] = 1.0
    with rerun.entered():
        walk = _Walk(rerun, bar)
        while walk.state.step < rerun.total_steps:
            walk.step(weights=weights, saturation=saturation)
    return walk.state, walk.tangent
