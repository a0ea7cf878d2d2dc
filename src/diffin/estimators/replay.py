"""Replay: the exact derivative of this very training with respect to the weight of every sample.

The recorded run is walked backwards, every step differentiated whole: the gradient, clipping, momentum, the second moment
of Adam, decay, the running statistics of batch normalisation. With lambda_t the derivative of the query loss with respect
to the state before step t, and w_z the weight of sample z in its batch,

    I(z, V) = sum over the steps t with z in B_t of  < lambda_{t+1}, d state_{t+1} / d w_z >.

This is reverse-mode differentiation through training (Maclaurin et al., "Gradient-based Hyperparameter Optimization through
Reversible Learning", 2015), the metagradient of Engstrom et al., "Optimizing ML Training with Metagradient Descent" (2025).
It answers for the run as it was: the same initial parameters, order and batches. It is exact to first order in the weight;
removing a sample altogether is a finite step.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from diffin import checked, reading
from diffin.derivatives.composite import differentiable_statistics
from diffin.derivatives.gradient import SampleSet, mean_gradient
from diffin.errors import DerivativeError
from diffin.estimators.base import Estimator
from diffin.files import parse_json, write_atomically
from diffin.progress import phase
from diffin.rerun import Adjoint, Rerun, State
from diffin.rerun.rerun import SATURATION
from diffin.rerun.state import floating
from diffin.rerun.walk import backwards, stretches
from diffin.task import PerSampleLoss, frozen
from diffin.tensor_files import save_tensors

Floats = npt.NDArray[np.float64]

_PROGRESS = "replay.safetensors"


@dataclass(frozen=True)
class Replayed:
    """What a replay found, for Q queries, N samples and S stretches of the training.

    Attributes:
        starts: the first step of each stretch, ascending.
        terms: Float64[ndarray, "Q N S"], what training on the sample in that stretch did; influence is the sum over S.
        mean_losses: Float64[ndarray, "N"], the sample's mean loss as training saw it; 0 where it never did.
        distance: the largest relative distance of a recomputed state from the recorded one.
    """

    starts: tuple[int, ...]
    terms: Floats
    mean_losses: Floats
    distance: float

    @property
    def influence(self) -> Floats:
        """Float64[ndarray, "Q N"]."""
        total: Floats = self.terms.sum(axis=2)
        return total


@dataclass(frozen=True)
class Replay(Estimator):
    """The exact influence on the recorded run, to first order in the weight of a sample.

    Costs a few trainings, whatever the number of samples. The run has to be repeatable: recorded sample indices, data that
    is the same at every reading, a deterministic model; recomputed states are held against the recorded ones.

    Attributes:
        saturation: of Adam only: where the root of its second moment is below this share of what is typical, an update is
            all sign, and taken as one that no sample moves. Its derivative would be exact and useless: on the scale of a
            sample it is zero or a spike. 0 keeps it.
    """

    saturation: float = SATURATION

    name: ClassVar[str] = "replay"

    def walk(
        self,
        rerun: Rerun,
        queries: Sequence[SampleSet],
        *,
        folder: Path | None = None,
        identity: str = "",
        progress: bool = True,
    ) -> Replayed:
        """Walk a training backwards.

        Args:
            rerun: the training.
            queries: the sets whose mean loss is asked about, each at the price of one more backward pass a step.
            folder: where the walk is saved after every stretch, to go on with if it is interrupted.
            identity: what the walk is of; one of another identity is not gone on with.
            progress: show a bar with the time left.

        Raises:
            TrajectoryError: recomputed parameters are not the recorded ones.
            DerivativeError: a loss or a derivative is not finite, or the model cannot be differentiated twice.
        """
        ranges = stretches(rerun)
        size = rerun.trajectory.dataset_size or 0
        walked = _Walked(
            until=None,
            adjoints=[],
            terms=torch.zeros(len(queries), size, len(ranges), dtype=torch.float64),
            losses=torch.zeros(size, dtype=torch.float64),
            seen=torch.zeros(size, dtype=torch.float64),
            distance=0.0,
        )
        if folder is not None:
            walked = _load(folder, identity) or walked
            walked.adjoints = [adjoint.to(rerun.loss.device) for adjoint in walked.adjoints]
        numbers = {start: number for number, (start, _) in enumerate(ranges)}
        left = rerun.total_steps if walked.until is None else walked.until
        with rerun.entered(), phase("replaying", 2 * left, show=progress) as bar:
            for stretch in backwards(rerun, until=walked.until, advance=bar.advance):
                if not walked.adjoints:
                    walked.adjoints = [query_adjoint(rerun, stretch.end, query) for query in queries]
                column = numbers[stretch.start]
                for state in stretch.states:
                    pulled = rerun.pull_back(state, walked.adjoints, saturation=self.saturation)
                    if pulled is not None:
                        walked.adjoints = pulled.adjoints
                        indices = torch.from_numpy(np.concatenate([part.indices for part in rerun.order(state.step)]))
                        walked.terms[:, :, column].index_add_(1, indices, pulled.sensitivities.double().cpu())
                        walked.losses.index_add_(0, indices, pulled.losses.double().cpu())
                        walked.seen.index_add_(0, indices, torch.ones(len(indices), dtype=torch.float64))
                    bar.advance()
                walked.until, walked.distance = stretch.start, max(walked.distance, stretch.distance)
                if not torch.isfinite(walked.terms).all():
                    raise DerivativeError(
                        f"the derivative of the training is not finite before step {stretch.end.step}: a loss overflowed, "
                        "or an operation of the model has an infinite derivative (a square root at zero)"
                    )
                if folder is not None:
                    _save(folder, identity, walked)
        return Replayed(
            tuple(numbers), walked.terms.numpy(), (walked.losses / walked.seen.clamp(min=1)).numpy(), walked.distance
        )


@dataclass
class _Walked:
    """How far a walk has come."""

    until: int | None
    adjoints: list[Adjoint]
    terms: Tensor
    losses: Tensor
    seen: Tensor
    distance: float


def query_adjoint(rerun: Rerun, end: State, query: SampleSet) -> Adjoint:
    """The derivative of the query's mean loss, in evaluation mode, with respect to the final state."""
    with frozen(rerun.task.model):
        loss = PerSampleLoss(rerun.task, {**rerun.loss.rest, **end.parameters, **end.buffers})
        point = {**loss.parameters, **floating(end.buffers)}
        with differentiable_statistics():
            gradient = mean_gradient(loss, query, at=point).gradient
    return Adjoint(
        {name: gradient[name] for name in end.parameters}, {name: gradient[name] for name in floating(end.buffers)}, {}
    )


def _save(folder: Path, identity: str, walked: _Walked) -> None:
    tensors = {"terms": walked.terms, "losses": walked.losses, "seen": walked.seen}
    for number, adjoint in enumerate(walked.adjoints):
        tensors |= {f"{number}/{name}": t for name, t in adjoint.packed().items()}
    known = {"identity": identity, "until": walked.until, "distance": walked.distance, "queries": len(walked.adjoints)}
    folder.mkdir(parents=True, exist_ok=True)
    with write_atomically(folder / _PROGRESS) as part:
        save_tensors(part, tensors, {"walk": json.dumps(known)})


def forget(folder: Path) -> None:
    """Remove what an interrupted walk has left in a folder."""
    (folder / _PROGRESS).unlink(missing_ok=True)


def _load(folder: Path, identity: str) -> _Walked | None:
    """The walk that was interrupted; ``None`` if there is none, or it is another one."""
    try:
        tensors, described = reading.described_tensors(folder / _PROGRESS)
        known = parse_json(described.get("walk", "null"))
        if not isinstance(known, dict) or known.get("identity") != identity:
            return None
        until, distance = checked.optional(known, "until", checked.whole), checked.real(known, "distance")
        queries = checked.whole(known, "queries")
    except (OSError, ValueError):
        return None
    if queries > len(tensors) or not {"terms", "losses", "seen"} <= set(tensors):
        return None
    adjoints = []
    for number in range(queries):
        prefix = f"{number}/"
        adjoints.append(
            Adjoint.unpacked({name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)})
        )
    return _Walked(until, adjoints, tensors["terms"], tensors["losses"], tensors["seen"], distance)
