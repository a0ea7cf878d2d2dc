"""How an optimizer answers to a small push, along one eigenvector of the curvature.

In the coordinates of a Ritz vector with value e, the derivative x of the parameters and y of the momentum buffer with
respect to the weight of a sample follow, for a push s in the gradient of step t,

    g' = c_t (e x + s)         y <- beta y + kappa g'         x <- (1 - eta_t lam) x - eta_t (a g' + b y),

with c_t the coefficient of clipping, and (kappa, a, b) = (1, 1, 0) without momentum, (1 - dampening, 0, 1) with it but for
the first step, which fills the buffer with kappa = 1, (1, 1, beta) for Nesterov's, and (1 - beta1, 0, 1) for Adam, whose
eta_t is divided by 1 - beta1^(t+1). Weight decay that goes through the gradient is a part of e, although it is added after
clipping: a clipped step therefore adds the share (1 - c_t) of it to g'. The adjoint of this
recursion, run from the end of a segment to its start, gives what a push at any of its steps does at the end (summed: the
direction of the segment), and what is handed to the segment before. The recursion itself, run from its start to its end,
gives what the same push at all of its steps has done by then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class StepResponse:
    """The constants of one step.

    Attributes:
        rate: eta_t, with Adam's bias correction.
        decayed: eta_t without it, by which decoupled decay goes.
        clip: c_t.
        beta: what is kept of the momentum buffer.
        kappa: what of the gradient goes into it.
        gradient: a.
        buffer: b.
    """

    rate: float
    decayed: float
    clip: float
    beta: float
    kappa: float
    gradient: float
    buffer: float

    @property
    def bound(self) -> float:
        """Half the curvature at which the step would be unstable: where a single mode answers fastest."""
        reach = self.gradient + self.kappa * self.buffer
        if self.gradient and self.buffer:  # Nesterov
            reach = (1 + 2 * self.beta) / (1 + self.beta)
        elif self.buffer:
            reach = self.kappa / (1 + self.beta)
        scale = self.rate * self.clip * reach
        return 1 / scale if scale else np.inf


def step_response(kind: str, constants: Mapping[str, Any], step: int, rate: float, clip: float) -> StepResponse:
    """The constants of the step that follows ``step`` others, skipped ones not counted."""
    if kind != "SGD":
        beta, _ = constants["betas"]
        return StepResponse(rate / (1 - beta ** (step + 1)), rate, clip, beta, 1 - beta, 0.0, 1.0)
    beta = constants["momentum"]
    if not beta:
        return StepResponse(rate, rate, clip, 0.0, 1.0, 1.0, 0.0)
    if constants["nesterov"]:
        return StepResponse(rate, rate, clip, beta, 1.0, 1.0, beta)
    return StepResponse(rate, rate, clip, beta, 1 - constants["dampening"] if step else 1.0, 0.0, 1.0)


@dataclass(frozen=True)
class Response:
    """What a segment does, in Ritz coordinates.

    Attributes:
        direction: Float64[ndarray, "k"], summed over the pushes at all its steps.
        parameters: Float64[ndarray, "k"], the adjoint of x at its start.
        buffer: Float64[ndarray, "k"], the adjoint of y at its start.
    """

    direction: Floats
    parameters: Floats
    buffer: Floats


def respond(
    steps: Sequence[StepResponse],
    values: Floats,
    parameters: Floats,
    buffer: Floats,
    decay: Floats | None = None,
    coupled: Floats | None = None,
) -> Response:
    """Run the adjoint recursion over the steps of a segment, from its end to its start.

    Args:
        steps: in the order of the training.
        values: Float64[ndarray, "k"], curvatures. They are clipped to [0, bound of the step]: held constant over a segment,
            a negative curvature would grow as no training does, whose curvature changes as it moves.
        parameters: Float64[ndarray, "k"], adjoint of x at the end.
        buffer: Float64[ndarray, "k"], adjoint of y at the end.
        decay: Float64[ndarray, "k k"], decoupled decay; ``None`` without.
        coupled: Float64[ndarray, "k k"], the part of the curvature that is weight decay; ``None`` without.
    """
    direction = np.zeros_like(parameters)
    for step in reversed(steps):
        curvature = np.clip(values, 0.0, step.bound)
        moved = -step.rate * parameters
        held = buffer + step.buffer * moved
        answer = step.gradient * moved + step.kappa * held
        pushed = step.clip * answer
        direction += pushed
        if decay is not None:
            parameters = parameters - step.decayed * (decay @ parameters)
        parameters = parameters + curvature * pushed
        if coupled is not None and step.clip < 1:
            parameters = parameters + (1 - step.clip) * (coupled @ answer)
        buffer = step.beta * held
    return Response(direction, parameters, buffer)


@dataclass(frozen=True)
class Moved:
    """Where a segment leads, in Ritz coordinates.

    Attributes:
        parameters: Float64[ndarray, "k"], x at its end.
        buffer: Float64[ndarray, "k"], y at its end.
    """

    parameters: Floats
    buffer: Floats


def move(
    steps: Sequence[StepResponse],
    values: Floats,
    parameters: Floats,
    buffer: Floats,
    push: Floats,
    decay: Floats | None = None,
    coupled: Floats | None = None,
) -> Moved:
    """Run the recursion over the steps of a segment, from its start to its end: the transpose of :func:`respond`.

    Args:
        steps: in the order of the training.
        values: Float64[ndarray, "k"], curvatures, clipped as in :func:`respond`.
        parameters: Float64[ndarray, "k"], x at the start.
        buffer: Float64[ndarray, "k"], y at the start.
        push: Float64[ndarray, "k"], s, the same in every step.
        decay: Float64[ndarray, "k k"], decoupled decay; ``None`` without.
        coupled: Float64[ndarray, "k k"], the part of the curvature that is weight decay; ``None`` without.
    """
    for step in steps:
        gradient = step.clip * (np.clip(values, 0.0, step.bound) * parameters + push)
        if coupled is not None and step.clip < 1:
            gradient = gradient + (1 - step.clip) * (coupled @ parameters)
        buffer = step.beta * buffer + step.kappa * gradient
        moved = -step.rate * (step.gradient * gradient + step.buffer * buffer)
        if decay is not None:
            moved = moved - step.decayed * (decay @ parameters)
        parameters = parameters + moved
    return Moved(parameters, buffer)
