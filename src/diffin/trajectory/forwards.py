"""Where the random numbers of the forward passes come from (dropout), so that a replay can draw the same ones.

A forward pass that goes on where the last one ended needs nothing written down. One that does not, because a data loader
or a transform drew in between, is recorded with the state of the generator that it began with.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def generator_of(device: torch.device) -> torch.Generator | None:
    """The generator that layers on a device draw from; ``None`` where it cannot be had."""
    if device.type == "cpu":
        return torch.default_generator
    if device.type == "cuda" and torch.cuda.is_available():
        generators: tuple[torch.Generator, ...] = torch.cuda.default_generators
        return generators[torch.cuda.current_device() if device.index is None else device.index]
    return None


class ForwardWatch:
    """Notes the generator's state before forward passes in training mode that draw from it.

    Args:
        model: what is trained. It gets two hooks, until :meth:`close`. ``None`` to watch nothing.
    """

    def __init__(self, model: nn.Module | None) -> None:
        parameter = None if model is None else next(model.parameters(), None)
        self._generator = None if parameter is None else generator_of(parameter.device)
        self._before: Tensor | None = None
        self._after: Tensor | None = None
        self._noted: list[bytes | None] = []
        self._handles = (
            [model.register_forward_pre_hook(self._start), model.register_forward_hook(self._end)]
            if model is not None and self._generator is not None
            else []
        )

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def take(self) -> tuple[bytes | None, ...] | None:
        """The states of the forward passes since the last call; ``None`` for those that went on, or if all did."""
        noted, self._noted = self._noted, []
        return tuple(noted) if any(state is not None for state in noted) else None

    def _start(self, module: nn.Module, _: Any) -> None:
        if torch.compiler.is_compiling():  # compiled later on: the graph must stay whole
            return
        if module.training and torch.is_grad_enabled() and self._generator is not None:
            self._before = self._generator.get_state()

    def _end(self, _: nn.Module, __: Any, ___: Any) -> None:
        if torch.compiler.is_compiling():
            return
        before, self._before = self._before, None
        if before is None or self._generator is None:
            return
        after = self._generator.get_state()
        if torch.equal(before, after):
            self._noted.append(None)
            return
        goes_on = self._after is not None and torch.equal(before, self._after)
        self._noted.append(None if goes_on else before.numpy().tobytes())
        self._after = after
