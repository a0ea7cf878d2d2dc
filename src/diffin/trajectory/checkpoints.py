"""A checkpoint: a state that the model had during training, and the step that followed it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from diffin.errors import TrajectoryError
from diffin.trajectory.optimizers import ParameterGroup


class StateSource(Protocol):
    """Where the tensors of a checkpoint come from."""

    path: Path

    def model(self) -> dict[str, Tensor]: ...

    def optimizer(self) -> dict[str, dict[str, Any]]: ...

    def rng(self) -> tuple[dict[str, Tensor], dict[str, Any]]: ...


@dataclass(frozen=True)
class Checkpoint:
    """A state of the training, lazily read. Every access reads the files again; nothing is kept.

    Attributes:
        step: steps taken before it.
        group_learning_rates: of the step that follows, one a parameter group; ``None`` where no step follows.
    """

    step: int
    group_learning_rates: tuple[float, ...] | None
    _source: StateSource = field(repr=False)
    _groups: tuple[ParameterGroup, ...] | None = field(repr=False)
    _shapes: Mapping[str, tuple[int, ...]] = field(repr=False)

    @property
    def path(self) -> Path:
        """The file or folder it is read from."""
        return self._source.path

    @property
    def state(self) -> dict[str, Tensor]:
        """Parameters and buffers by name, on the CPU.

        Raises:
            TrajectoryError: the file is damaged, or does not hold the parameters that it should.
        """
        state = self._source.model()
        for name, shape in self._shapes.items():
            if name not in state:
                raise TrajectoryError(
                    f"{self.path} lacks the parameter {name!r}: it belongs to another model or is damaged"
                )
            if tuple(state[name].shape) != shape:
                raise TrajectoryError(
                    f"{self.path} has {name!r} of shape {tuple(state[name].shape)} where the trajectory has "
                    f"{shape}: it belongs to another model"
                )
        return state

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The parameters by name.

        A foreign checkpoint does not say what they are: all its floating-point tensors but running statistics.
        """
        return {name: tensor for name, tensor in self.state.items() if name in self._shapes}

    @property
    def buffers(self) -> dict[str, Tensor]:
        """The buffers by name, those that ``state_dict`` leaves out included."""
        return {name: tensor for name, tensor in self.state.items() if name not in self._shapes}

    @property
    def learning_rate(self) -> float:
        """The learning rate of the step that follows.

        Raises:
            TrajectoryError: parameter groups differ, or no step follows.
        """
        rates = self._rates()
        if len(set(rates)) > 1:
            raise TrajectoryError(
                f"the step after the checkpoint at step {self.step} used different learning rates for its parameter "
                f"groups, {rates}: use checkpoint.learning_rates(names), which gives each parameter its own"
            )
        return rates[0]

    def learning_rates(self, names: Iterable[str]) -> dict[str, float]:
        """The learning rate of the step that follows, by parameter name; 0 for what the optimizer did not have.

        Raises:
            TrajectoryError: a name is not a parameter of the model, or no step follows.
        """
        rates, names = self._rates(), list(names)
        if self._groups is None:
            return dict.fromkeys(names, rates[0])
        by_name = {name: rate for group, rate in zip(self._groups, rates, strict=True) for name in group.names}
        for name in names:
            if name not in self._shapes:
                raise TrajectoryError(
                    f"{name!r} is not a parameter of the recorded model, whose names look like "
                    f"{', '.join(list(self._shapes)[:3])}: use the names of model.named_parameters() without wrappers"
                )
        return {name: by_name.get(name, 0.0) for name in names}

    @property
    def optimizer_state(self) -> dict[str, dict[str, Any]]:
        """State of the optimizer by parameter name and key, e.g. ``["fc.weight"]["momentum_buffer"]``; for replays."""
        return self._source.optimizer()

    @property
    def rng_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """States of random number generators, as ``diffin.trajectory.randomness.restore`` takes them; for replays."""
        return self._source.rng()

    def _rates(self) -> tuple[float, ...]:
        if self.group_learning_rates is None:
            raise TrajectoryError(f"no step followed the state at step {self.step}, so it has no learning rate")
        return self.group_learning_rates
