"""A moment of a training: everything that the next step depends on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffin import vectors
from diffin.rerun.update import Memory
from diffin.task import PerSampleLoss
from diffin.trajectory import Checkpoint
from diffin.vectors import Vector

Randomness = tuple[dict[str, Tensor], dict[str, Any]]
"""States of the random number generators, as :func:`diffin.trajectory.randomness.capture` returns them."""


@dataclass(frozen=True)
class State:
    """A moment of a training.

    Attributes:
        step: steps taken before it.
        parameters: of the model, those that training could change.
        buffers: of the model, e.g. running statistics.
        memory: what the optimizer carries.
        randomness: of the generators, where training draws from them.
        gradients: those of the step that led here, where they were kept; ``None`` also after a step that was skipped.
    """

    step: int
    parameters: Vector
    buffers: Vector
    memory: Memory
    randomness: Randomness | None = None
    gradients: Vector | None = None

    @staticmethod
    def of(checkpoint: Checkpoint, loss: PerSampleLoss) -> State:
        """The stored state, on the device of the loss.

        Raises:
            TrajectoryError: it is damaged, or not of a recorded training.
        """
        slots: dict[str, Vector] = {}
        counts: dict[str, int] = {}
        for name, remembered in checkpoint.optimizer_state.items():
            for key, value in remembered.items():
                if name not in loss.parameters or value is None:
                    continue
                if key == "step":
                    counts[name] = int(value)
                elif isinstance(value, Tensor):
                    slots.setdefault(key, {})[name] = value.to(loss.parameters[name])
        state = checkpoint.state
        buffers = {name: state.get(name, tensor).to(tensor) for name, tensor in loss.task.model.named_buffers()}
        return State(
            checkpoint.step, vectors.like(state, loss.parameters), buffers, Memory(slots, counts), checkpoint.rng_state
        )

    def nbytes(self) -> int:
        """Memory of its tensors, in bytes."""
        tensors = [self.parameters, self.buffers, self.gradients or {}, *self.memory.slots.values()]
        return sum(t.numel() * t.element_size() for vector in tensors for t in vector.values())

    def is_finite(self) -> bool:
        return vectors.is_finite(self.parameters)


def floating(buffers: Vector) -> Vector:
    """The buffers that can have a derivative."""
    return {name: t for name, t in buffers.items() if torch.is_floating_point(t)}
