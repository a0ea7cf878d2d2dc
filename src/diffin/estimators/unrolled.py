"""Unrolled: the recursion that Diff-In truncates, solved, with the optimizer that was used.

With I_t the derivative of the parameters after t steps with respect to the weight of sample z, averaged over the batches z
could have been in, a step of gradient descent gives

    I_{t+1} = I_t - eta_t ( H_t I_t + g_z(theta_t) / N ),        I_0 = 0,

and momentum, decay and Adam's preconditioner add their terms. Its adjoint starts with the gradient of the query at the
end of the training and is carried back to its start; what it says of the gradient of a step is a direction u_t, and

    I(z, V) = (1 / N) sum over t of  D_{u_t} l_z(theta_t).

The sum is taken in blocks: one direction, and one state at which all samples are measured, for each. There are two ways to
carry the adjoint:

- ``"steps"`` walks every recorded step backwards, differentiated whole, as Replay does; where Replay credits the samples of
  each batch, here every sample is asked about every block, so that it counts what z would have done in any order. It needs a
  recording that can be repeated.
- ``"segments"`` needs a few checkpoints only. A segment of steps around each has the curvature H and the preconditioner P
  of its checkpoint; with R = P^(1/2), a Lanczos run on R H R from R lambda gives Ritz pairs, along each of which the
  optimizer's answer is a scalar recursion (:mod:`diffin.estimators.response`). It is unrolled differentiation in segments
  as in SOURCE (Bae et al., "Training Data Attribution via Approximate Unrolled Differentiation", 2024), without factors of
  the curvature, and with the steps that were taken.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from diffin.derivatives.gauss_newton import bears_gauss_newton
from diffin.derivatives.hessian import PRODUCTS, HessianProduct
from diffin.derivatives.kinks import kinks
from diffin.errors import DiffinError
from diffin.estimators import segments, stepwise
from diffin.estimators.base import Built, Carried, ProbingEstimator, Run
from diffin.probes import CheckpointProbes
from diffin.progress import Phase
from diffin.rerun import Rerun
from diffin.sample import Sample
from diffin.sources import Source
from diffin.task import PerSampleLoss, Task, frozen
from diffin.trajectory import Trajectory

_log = logging.getLogger(__name__)

_WALKED = 2_000_000

Propagation = Literal["auto", "steps", "segments"]


@dataclass(frozen=True)
class Unrolled(ProbingEstimator):
    """The influence to expect of a sample, by differentiating through the training.

    Attributes:
        propagation: ``"steps"``, ``"segments"``, or ``"auto"`` for ``"steps"`` where the shortest stretch between two stored
            states can be repeated, the run saw at most two million samples, repetitions counted, and no layer of the model
            normalises by batch: a walk takes two to five trainings, and ``"segments"`` costs the same however long the
            training was. What follows but ``states`` is of
            ``"segments"``.
        states: at how many states of the training the samples are measured, for ``"steps"``. They lie denser early, where
            training moves fastest: the j-th at ``T ((j + 1/2) / states)^2``. ``"segments"`` measures at the checkpoints.
        rank: Hessian products per checkpoint.
        curvature_samples: training samples that stand for the curvature, drawn anew at every checkpoint; ``None`` for all.
        seed: of those draws.
        hessian: how a product with the Hessian is taken.

            - ``"exact"`` differentiates twice.
            - ``"difference"``: the difference of two gradients, one of which is there anyway. It costs a third to a half, and
              ranks the same where the model is smooth and computes in float32 at least.
            - ``"gauss-newton"``: the curvature of the loss in the outputs of the model only. It costs less than ``"exact"``,
              forgets what a small step does to the model's own curvature, and is steadier where training is erratic.
            - ``"auto"``: differences where the model is smooth; where its slope jumps (ReLU, max-pooling), which makes them
              worthless, Gauss-Newton where the losses go through calls of the model alone, and exact ones elsewhere.

            It cannot be seen from outside whether a model computes in less than float32 (TF32, or autocast of which its task
            does not say so): pass ``"exact"`` or ``"gauss-newton"`` there.
    """

    propagation: Propagation = "auto"
    states: int = 10
    rank: int = 10
    curvature_samples: int | None = 2048
    seed: int = 0
    hessian: Literal["auto"] | HessianProduct = "auto"

    name: ClassVar[str] = "unrolled"

    def __post_init__(self) -> None:
        if self.propagation not in ("auto", "steps", "segments"):
            raise DiffinError(f"Unrolled(propagation={self.propagation!r}): pass 'auto', 'steps' or 'segments'")
        for name in ("states", "rank", "curvature_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise DiffinError(f"Unrolled({name}={value}): pass 1 or more")
        if self.seed < 0:
            raise DiffinError(f"Unrolled(seed={self.seed}): pass 0 or more")
        if self.hessian not in ("auto", *get_args(HessianProduct)):
            raise DiffinError(f"Unrolled(hessian={self.hessian!r}): pass 'auto', {PRODUCTS}")

    def resolved(self, task: Task, trajectory: Trajectory, train: Source) -> Unrolled:
        """With ``propagation`` and ``hessian`` decided.

        For the one, a few steps of the training are repeated, to see whether that can be done; for the other, it is seen
        which operations the loss of a few samples is made of.

        Raises:
            DiffinError: the two do not go together with this model.
        """
        chosen = self._propagating(task, trajectory, train)
        whole = chosen.propagation == "steps" and _normalises_by_batch(task)
        if whole and chosen.hessian in ("difference", "gauss-newton"):
            raise DiffinError(
                f"Unrolled(propagation='steps', hessian={chosen.hessian!r}) cannot follow the statistics of batch "
                "normalisation; pass hessian='exact', or propagation='segments'"
            )
        if chosen.hessian != "auto":
            return chosen
        return replace(chosen, hessian="exact" if whole else _product(task, trajectory, train))

    def _propagating(self, task: Task, trajectory: Trajectory, train: Source) -> Unrolled:
        if self.propagation != "auto":
            return self
        # A walk goes through the statistics of the batches, and samples are scored with running ones: that fits ill.
        if _normalises_by_batch(task):
            return replace(self, propagation="segments")
        first = None if trajectory.steps is None or not len(trajectory.steps) else trajectory.steps.indices(0)
        if first is None or len(first) * trajectory.total_steps > _WALKED:
            if first is None and trajectory.steps is not None:
                _log.warning(
                    "Unrolled goes by segments, which is less accurate, because no sample indices were recorded"
                )
            return replace(self, propagation="segments")
        try:
            Rerun(task, trajectory, train).check_repeatable()
        except DiffinError as error:
            _log.warning(
                "Unrolled goes by segments, which is less accurate, because the training cannot be repeated: %s", error
            )
            return replace(self, propagation="segments")
        return replace(self, propagation="steps")

    def steps(self, trajectory: Trajectory) -> tuple[int, ...]:
        if self.propagation == "steps":
            return stepwise.states(self.states, trajectory.total_steps)
        return tuple(checkpoint.step for checkpoint in trajectory.checkpoints)

    def work(self, trajectory: Trajectory) -> int:
        return 2 * trajectory.total_steps if self.propagation == "steps" else len(trajectory.checkpoints)

    def build(self, run: Run, built: Built, bar: Phase) -> Iterator[tuple[CheckpointProbes, Carried]]:
        assert self.propagation != "auto"  # it is `resolved` that is asked
        assert self.hessian != "auto"
        if self.propagation == "steps":
            return stepwise.build(run, built, bar, self.states, self.hessian)
        return segments.build(
            run, built, bar, rank=self.rank, samples=self.curvature_samples, seed=self.seed, hessian=self.hessian
        )


def _normalises_by_batch(task: Task) -> bool:
    return any(isinstance(module, _BatchNorm) for module in task.model.modules())


def _product(task: Task, trajectory: Trajectory, train: Source) -> HessianProduct:
    """The cheapest product that the model and the precision of its parameters bear."""
    with frozen(task.model):
        loss = PerSampleLoss(task, trajectory.checkpoints[0].state)
        half = (torch.bfloat16, torch.float16)
        if task.autocast in half or any(t.dtype in half for t in loss.parameters.values()):
            return "exact"
        batch = loss.to_device(Sample.of(train).thinned(2).batch)
        if not kinks(loss, batch):
            return "difference"
        return "gauss-newton" if bears_gauss_newton(loss, batch) else "exact"
