"""Walking a recorded training backwards, step by step, from the states that were stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import isqrt

from diffin.batches import nbytes
from diffin.rerun.rerun import Rerun
from diffin.rerun.state import State

_HELD_BYTES = 2**29


@dataclass(frozen=True)
class Stretch:
    """The steps between two stored states.

    Attributes:
        start: the first step.
        end: the state after its last step.
        distance: how far that is from the recorded one, over the distance travelled; 0 in another order.
        states: the states before each step, last first; each is computed when it is asked for.
    """

    start: int
    end: State
    distance: float
    states: Iterator[State]


def stretches(rerun: Rerun) -> list[tuple[int, int]]:
    """First step and end of every stretch, in the order of the training; the whole of one in another order."""
    if not rerun.is_recorded:
        return [(0, rerun.total_steps)]
    return list(pairwise(checkpoint.step for checkpoint in rerun.trajectory.stored))


def backwards(
    rerun: Rerun,
    *,
    until: int | None = None,
    keep_gradients: bool = False,
    advance: Callable[[int], None] = lambda steps: None,
) -> Iterator[Stretch]:
    """The stretches of a training, last first, every state recomputed and checked against the stored ones.

    A stretch is computed forward once if its states fit into memory. If they do not, every r-th is kept, r the root of
    its length, and the others are computed again from those: O(sqrt(T)) states are held.

    Args:
        rerun: the training; entered.
        until: leave out the steps from here on, which an earlier walk has taken; in the middle of a stretch, its end is
            not checked again.
        keep_gradients: keep the gradients of every step with the state after it.
        advance: called with the number of steps taken forward.

    Raises:
        TrajectoryError: the recomputed parameters are not the recorded ones.
    """
    stored = {checkpoint.step: checkpoint for checkpoint in rerun.trajectory.stored}
    for start, stop in reversed(stretches(rerun)):
        if until is not None:
            stop = min(stop, until)
        if stop <= start:
            continue
        first = rerun.state(stored[start])
        length = stop - start
        held = first.nbytes() + (nbytes(first.parameters) if keep_gradients else 0)
        stride = 1 if held * length <= _HELD_BYTES else isqrt(length)
        kept, state = [], first
        for step in range(start, stop):
            if (step - start) % stride == 0:
                kept.append(state)
            state = rerun.advance(state, keep_gradients=keep_gradients)
            advance(1)
        distance = rerun.check(state, stored[stop], first) if rerun.is_recorded and stop in stored else 0.0
        yield Stretch(start, state, distance, _reversed_states(rerun, kept, stop, keep_gradients))


def _reversed_states(rerun: Rerun, kept: list[State], stop: int, keep_gradients: bool) -> Iterator[State]:
    end = stop
    while kept:
        block = [kept.pop()]
        while block[-1].step + 1 < end:
            block.append(rerun.advance(block[-1], keep_gradients=keep_gradients))
        end = block[0].step
        while block:
            yield block.pop()
