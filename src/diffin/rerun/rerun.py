"""The steps of a recorded training, as functions of parameters, optimizer memory, and the weights of samples."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from diffin import vectors
from diffin.batches import Batch, digest, select
from diffin.derivatives.composite import differentiable_statistics
from diffin.derivatives.hessian import refuse_once_differentiable
from diffin.errors import TrajectoryError
from diffin.parallel import ALONE, Ranks
from diffin.rerun.adjoint import Adjoint, PulledBack
from diffin.rerun.batches import Batches, Order, Part, recorded_order
from diffin.rerun.state import State, floating
from diffin.rerun.update import GroupStep, Memory, update
from diffin.sources import Indices, Source
from diffin.task import PerSampleLoss, Task, as_trained
from diffin.trajectory import Checkpoint, Trajectory, randomness
from diffin.trajectory.forwards import generator_of
from diffin.vectors import Vector

SATURATION = 1e-3
"""Below which share of the typical second moment an update of Adam is taken as a sign, which no sample moves."""

TOLERANCE = 0.01
"""How far recomputed parameters may be from the recorded ones, over the distance travelled since the state before."""


class Rerun:
    """A recorded training that can be executed again. Use it inside :meth:`entered`.

    Args:
        task: model and loss, as trained.
        trajectory: a recording with the samples of every step.
        train: the training set, by index.
        order: batches of every step; the recorded ones by default. With others, only the initial state is that of the
            recording.
        ranks: the processes that take the steps together, each of a share of every batch where that is the same.

    Raises:
        TrajectoryError: the recording does not say what is needed (each obstacle is named).
    """

    def __init__(
        self, task: Task, trajectory: Trajectory, train: Source, order: Order | None = None, *, ranks: Ranks = ALONE
    ) -> None:
        obstacles = trajectory.replay_obstacles()
        if obstacles or trajectory.steps is None or trajectory.optimizer is None:
            raise TrajectoryError("this training cannot be repeated. " + " ".join(obstacles))
        if train.length is not None and train.length != trajectory.dataset_size:
            raise TrajectoryError(
                f"the training set has {train.length} samples and the run was recorded with {trajectory.dataset_size}; pass "
                "the data set that the recorded indices belong to"
            )
        self.task, self.trajectory, self.ranks = task, trajectory, ranks
        self.log, self.optimizer = trajectory.steps, trajectory.optimizer
        self.loss = PerSampleLoss(task, trajectory.stored[0].state)
        self.is_recorded = order is None
        self.order = order or recorded_order(self.log, task)
        self.batches = Batches(train, self.loss.device)
        self.refused_kernels = False

    @contextmanager
    def entered(self, steps: range | None = None) -> Iterator[None]:
        """The model in training mode; its own state and the generators of the caller are put back afterwards.

        Args:
            steps: that will be taken, whose samples are read together if they fit in memory; all by default.

        Raises:
            DatasetError: the training set cannot be read by index.
        """
        self.batches.hold(self.samples(steps))
        kept = randomness.capture()
        try:
            with as_trained(self.task.model):
                yield
        finally:
            randomness.restore(*kept)

    def identity(self) -> str:
        """Tells this training from another: its first and last states, and the rates and batches of a few steps."""
        states = [digest(c.state, most=4096) for c in (self.trajectory.stored[0], self.trajectory.stored[-1])]
        looked_at = range(0, self.total_steps, max(1, self.total_steps // 16))
        steps = [[self.log.learning_rates[t].tolist(), [p.indices.tolist() for p in self.order(t)]] for t in looked_at]
        return hashlib.sha256(json.dumps([states, steps, self.optimizer.to_json()]).encode()).hexdigest()[:16]

    def samples(self, steps: range | None = None) -> Indices:
        """Int64[ndarray, "U"], of which samples the batches of some steps are, or of all, each once."""
        parts = (part.indices for t in steps or range(self.total_steps) for part in self.order(t))
        return np.unique(np.concatenate([np.empty(0, dtype=np.int64), *parts]))

    @property
    def total_steps(self) -> int:
        return self.trajectory.total_steps

    def state(self, checkpoint: Checkpoint) -> State:
        """The stored state of a checkpoint."""
        state = State.of(checkpoint, self.loss)
        return state if self.draws else replace(state, randomness=None)

    @cached_property
    def draws(self) -> bool:
        """Whether the loss in training mode draws random numbers (dropout)."""
        before = randomness.capture()
        first = next(parts for parts in map(self.order, range(self.total_steps)) if parts)
        with as_trained(self.task.model), torch.no_grad():
            self.loss(self.loss.parameters, self.batches.read(first[0].indices))
        after = randomness.capture()
        randomness.restore(*before)
        # NumPy's generator has words that stay and a position among them that moves.
        return before[1] != after[1] or any(not torch.equal(after[0][name], t) for name, t in before[0].items())

    @cached_property
    def shared(self) -> bool:
        """Whether every process takes a share of each batch, and they add up what they find.

        They do not where a step has to see its whole batch: it is normalised by batch, its losses are coupled, or random
        numbers are drawn for it. Then every process takes whole steps, all of them the same.
        """
        if self.ranks.count == 1 or self.task.group_size is not None:
            return False
        return self.ranks.once(lambda: not self.draws and self._separable())

    def _separable(self) -> bool:
        """Whether half of the first batch has the losses that it has within the whole, and no buffer changes."""
        first = next(parts for parts in map(self.order, range(self.total_steps)) if parts)[0]
        state = self.state(self.trajectory.stored[0])
        buffers = {name: t.clone() for name, t in state.buffers.items()}
        batch, half = self.batches.read(first.indices), slice(0, (len(first.indices) + 1) // 2)
        with as_trained(self.task.model), torch.no_grad():
            whole = self.loss({**state.parameters, **buffers}, batch)
            alone = self.loss({**state.parameters, **buffers}, select(batch, half))
        if any(not torch.equal(t, state.buffers[name]) for name, t in buffers.items()):
            return False
        tolerance = max(torch.finfo(t.dtype).eps for t in (whole, *state.parameters.values())) ** 0.5
        return torch.allclose(alone, whole[half], rtol=tolerance, atol=tolerance, equal_nan=True)

    def advance(self, state: State, weights: Tensor | None = None, *, keep_gradients: bool = False) -> State:
        """The state one step later.

        Args:
            state: before the step.
            weights: Float[Tensor, "N"], what each sample's loss is multiplied by; 1 by default.
            keep_gradients: keep the gradients of the step with the state after it.
        """
        if not self.order(state.step):
            return replace(state, step=state.step + 1, gradients=None)
        gradients, buffers = self.gradients(state, state.parameters, weights)
        with torch.no_grad():
            moved, memory = self.moved(state.step, state.parameters, state.memory, gradients)
        drawn = randomness.capture() if self.draws else None
        return State(state.step + 1, moved, buffers, memory, drawn, gradients if keep_gradients else None)

    def gradients(
        self, state: State, at: Mapping[str, Tensor], weights: Tensor | None = None
    ) -> tuple[Vector, dict[str, Tensor]]:
        """Gradients of the objective of the step after ``state``, but at the parameters ``at``; and the buffers after it."""
        self.set_generators(state)
        buffers = {name: t.clone() for name, t in state.buffers.items()}
        parameters = {name: t.detach().requires_grad_() for name, t in at.items()}
        with torch.enable_grad():
            objective, _ = self.objective(state.step, parameters, buffers, weights, own=self.shared)
            return self.added_up(self.gradients_of(objective, parameters), parameters), buffers

    def pull_back(
        self, state: State, adjoints: Sequence[Adjoint], *, saturation: float = SATURATION
    ) -> PulledBack | None:
        """Adjoints before a step from those after it, with the whole step differentiated.

        Args:
            state: before the step.
            adjoints: after the step, one for each of Q numbers.
            saturation: see :func:`diffin.rerun.update.update`; 0 for the derivative as it is.

        Returns:
            ``None`` for a step that was skipped: it changed nothing.

        Raises:
            DerivativeError: the gradient of the model cannot be differentiated.
        """
        step = state.step
        if not self.order(step):
            return None
        self.set_generators(state)
        parameters = leaves(state.parameters)
        old_buffers = leaves(floating(state.buffers))
        slots = {key: leaves(vector) for key, vector in state.memory.slots.items()}
        count = sum(len(part.indices) for part in self.order(step))
        kind = torch.promote_types(next(iter(parameters.values())).dtype, torch.float32)
        weights = torch.ones(count, dtype=kind, device=self.loss.device, requires_grad=True)
        with torch.enable_grad(), differentiable_statistics():
            # A copy each: the model updates its statistics in place, and leaves cannot be written to.
            buffers = {n: old_buffers[n].clone() if n in old_buffers else t.clone() for n, t in state.buffers.items()}
            objective, losses = self.objective(step, parameters, buffers, None, by_position=weights)
            gradients = self.gradients_of(objective, parameters, create_graph=True)
            # A name each: what arrives at one parameter may be the gradient of another too, or be a part of it.
            gradients = {name: g.view_as(g) for name, g in gradients.items()}
            if not self.refused_kernels:
                refuse_once_differentiable(gradients.values())
                self.refused_kernels = True
            moved, memory = self.moved(
                step, parameters, Memory(slots, state.memory.counts), gradients, saturation=saturation
            )
        inputs = [
            *parameters.values(), *old_buffers.values(), *(t for vector in slots.values() for t in vector.values()), weights,
            *gradients.values(),
        ]  # fmt: skip
        after = Adjoint(moved, floating(buffers), memory.slots)
        outputs = after.flat()
        before, sensitivities, directions = [], [], []
        for number, adjoint in enumerate(adjoints):
            cotangents = adjoint.completed(after).flat()
            used = [(o, c) for o, c in zip(outputs, cotangents, strict=True) if o.requires_grad]
            found = torch.autograd.grad(
                [o for o, _ in used],
                inputs,
                [c for _, c in used],
                allow_unused=True,
                retain_graph=number + 1 < len(adjoints),
            )
            values = iter(torch.zeros_like(i) if f is None else f for i, f in zip(inputs, found, strict=True))
            before.append(
                Adjoint(
                    {name: next(values) for name in parameters},
                    {name: next(values) for name in old_buffers},
                    {key: {name: next(values) for name in vector} for key, vector in slots.items()},
                )
            )
            sensitivities.append(next(values))
            directions.append({name: next(values) for name in gradients})
        return PulledBack(before, torch.stack(sensitivities), directions, losses.detach())

    def distance(self, state: State, checkpoint: Checkpoint, start: Mapping[str, Tensor]) -> float:
        """How far ``state`` is from the recorded one, over how far that is from ``start``."""
        recorded = vectors.like(checkpoint.state, self.loss.parameters)
        travelled = vectors.norm(vectors.add(recorded, start, -1.0))
        missed = vectors.norm(vectors.add(state.parameters, recorded, -1.0))
        return missed / travelled if travelled else float(missed > 0)

    def check(self, state: State, checkpoint: Checkpoint, start: State) -> float:
        """The distance of the recomputed ``state`` from the recorded one.

        Raises:
            TrajectoryError: it is not the same training.
        """
        distance = self.distance(state, checkpoint, start.parameters)
        if not state.is_finite():
            raise TrajectoryError(
                f"steps {start.step} to {state.step}, taken again, end at parameters that are not finite; is a sample of the "
                "training set broken that was not then?"
            )
        if distance > TOLERANCE:
            causes = ["data that is not the same at every reading (random augmentation)"]
            if self.draws:
                causes.insert(0, "dropout or another draw of random numbers between the recorded forward passes")
            if len(self.order(start.step)) > 1:
                causes.insert(0, "micro-batches whose losses were not averaged")
            raise TrajectoryError(
                f"steps {start.step} to {state.step}, taken again, miss the recorded parameters by {distance:.2g} of "
                f"the distance travelled ({TOLERANCE} is allowed). Something that is not recorded took part: "
                f"{'; '.join(causes)}; a training loss that is not the mean of the task's losses; gradients changed "
                "before the step; parts of the model in evaluation mode; or another version of the code. "
                "Unrolled(propagation='segments') repeats no step"
            )
        return distance

    def check_repeatable(self) -> None:
        """Repeat the steps between two stored states, the nearest there are.

        Raises:
            TrajectoryError: they end elsewhere.
            DatasetError: the training set cannot be read by index.
        """
        self.repeat(*min(pairwise(self.trajectory.stored), key=lambda pair: pair[1].step - pair[0].step))

    def repeat(self, start: Checkpoint, stop: Checkpoint) -> float:
        """Take the steps between two stored states again.

        Returns:
            How far that ends from the recorded state, over the distance travelled.

        Raises:
            TrajectoryError: it is not the same training.
            DatasetError: the training set cannot be read by index.
        """
        with self.entered(range(start.step, stop.step)):
            first = state = self.state(start)
            while state.step < stop.step:
                state = self.advance(state)
            return self.check(state, stop, first)

    def groups(self, step: int) -> list[GroupStep]:
        """What a step used, by parameter group."""
        rates, constants = self.log.learning_rates[step], self.log.constants(step)
        return [
            GroupStep(group.names, float(rate), values)
            for group, rate, values in zip(self.optimizer.groups, rates, constants, strict=True)
        ]

    def objective(
        self,
        step: int,
        parameters: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        weights: Tensor | None,
        *,
        by_position: Tensor | None = None,
        own: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """The weighted loss whose gradient the step takes, and the loss of every sample of its batch.

        With ``own``, what the samples of this process's share contribute to it.
        """
        total: Tensor | None = None
        losses, position = [], 0
        for part, batch in self.parts(step, own=own):
            outcome = self.loss.outcome({**parameters, **buffers}, batch)
            found = outcome.losses
            if by_position is not None:
                weighted = outcome.weighted(by_position[position : position + len(found)])
            elif weights is not None:
                weighted = outcome.weighted(weights[torch.from_numpy(part.indices).to(weights.device)])
            else:
                weighted = found.sum()
            objective = weighted * part.share
            total = objective if total is None else total + objective
            losses.append(found)
            position += len(found)
        if total is None:  # more processes than samples; a step that was skipped does not come here
            nothing = torch.zeros((), device=self.loss.device)
            return nothing, nothing.expand(0)
        return total, torch.cat(losses)

    def parts(self, step: int, *, own: bool = False) -> Iterator[tuple[Part, Batch]]:
        """The parts of the batch of a step, with their samples; dropout will draw for each what it drew then.

        With ``own``, this process's share of each.
        """
        for number, part in enumerate(self.order(step)):
            self.set_forward_generator(step, number)
            if own:
                part = replace(part, indices=part.indices[slice(*self.ranks.share(len(part.indices)))])
            if len(part.indices):
                yield part, self.batches.read(part.indices)

    def added_up(self, found: Vector, parameters: Mapping[str, Tensor]) -> Vector:
        """What all processes have found of their shares; nothing of a parameter of which none has found anything."""
        if not self.shared:
            return found
        known = torch.tensor([float(name in found) for name in parameters], device=self.loss.device)
        whole = {name: found[name] if name in found else torch.zeros_like(t) for name, t in parameters.items()}
        summed = self.ranks.summed({**whole, "": known})
        counts = summed.pop("").tolist()
        return {name: t for (name, t), count in zip(summed.items(), counts, strict=True) if count}

    def gradients_of(
        self, objective: Tensor, parameters: Mapping[str, Tensor], *, create_graph: bool = False
    ) -> Vector:
        """By the name of the parameter, of those that the objective depends on."""
        if not objective.requires_grad:
            return {}
        found = torch.autograd.grad(objective, list(parameters.values()), create_graph=create_graph, allow_unused=True)
        return {name: g for name, g in zip(parameters, found, strict=True) if g is not None}

    def moved(
        self,
        step: int,
        parameters: Mapping[str, Tensor],
        memory: Memory,
        gradients: Vector,
        *,
        saturation: float = 0.0,
    ) -> tuple[Vector, Memory]:
        """Parameters and memory after a step that found these gradients, clipped as the step did."""
        clip = self.log.clipping(step)
        if clip is not None:
            used = [gradients[name] for group in self.optimizer.groups for name in group.names if name in gradients]
            norms = torch.stack([torch.linalg.vector_norm(g, clip.norm_type) for g in used])
            factor = (clip.max_norm / (torch.linalg.vector_norm(norms, clip.norm_type) + 1e-6)).clamp(max=1.0)
            gradients = {name: g * factor for name, g in gradients.items()}
        return update(self.optimizer.kind, self.groups(step), parameters, memory, gradients, saturation=saturation)

    def set_forward_generator(self, step: int, part: int) -> None:
        """The generator of dropout as the recorded forward pass over that part of the batch found it."""
        if not self.draws:
            return
        noted = self.log.randomness(step)
        generator = generator_of(self.loss.device)
        found = None if noted is None or len(noted) != len(self.order(step)) else noted[part]
        if found is not None and generator is not None:
            if len(found) != generator.get_state().numel():
                raise TrajectoryError(
                    f"the random numbers of step {step} were drawn on another kind of device than {self.loss.device}; move "
                    "the model to where it was trained"
                )
            generator.set_state(torch.frombuffer(bytearray(found), dtype=torch.uint8))

    def set_generators(self, state: State) -> None:
        """Random numbers as the step after the state drew them."""
        if self.draws and state.randomness is not None:
            randomness.restore(*state.randomness)


def leaves(vector: Mapping[str, Tensor]) -> Vector:
    """Copies to differentiate with respect to."""
    return {name: t.detach().clone().requires_grad_() for name, t in vector.items()}
