"""Many reruns at once: the same steps from the same state, each run with weights of its own for the samples.

A small network keeps a processor busy with everything but arithmetic. So the states of R runs are stacked, and one call of
the model, mapped over the stack (``torch.func.vmap``), takes the step of all of them. The gradient of the sum of their
objectives is the stack of their gradients, because no run depends on another.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.func import vmap

from diffin import vectors
from diffin.errors import DiffinError
from diffin.rerun.rerun import Rerun
from diffin.rerun.state import State, floating
from diffin.rerun.update import Memory
from diffin.trajectory import randomness
from diffin.vectors import Vector

_log = logging.getLogger(__name__)

Method = Literal["auto", "vmap", "loop"]

_TRIAL_STEPS = 3
_STATES_HELD = 6
"""Parameters, buffers and slots before and after a step, and the gradients, about."""
_CPU_BYTES, _CPU_RUNS = 3 * 2**24, 128
_DEVICE_BYTES, _DEVICE_RUNS = 2**31, 1024


@dataclass(frozen=True)
class Manner:
    """How reruns are executed. The results depend on it by rounding only.

    Attributes:
        method: ``"vmap"``, stacked, or ``"loop"``, one after another.
        at_once: how many are stacked, 1 in a loop.
        reason: why they are not stacked; empty where they are.
    """

    method: Literal["vmap", "loop"]
    at_once: int
    reason: str = ""


def choose_manner(rerun: Rerun, *, method: Method = "auto", at_once: int | None = None) -> Manner:
    """Find out whether this training can be stacked, and how many runs of it fit.

    Two runs with random weights take the first steps both ways; stacking is chosen if it works and agrees. How many are
    stacked depends on the model alone, never on timing, so that the choice is the same every time.

    Args:
        rerun: the training; entered.
        method: ``"vmap"`` to insist on stacking, ``"loop"`` to do without.
        at_once: how many to stack; ``None`` for as many as use about 48 MiB (2 GiB on an accelerator) with what autograd
            keeps of a step, 128 (1024) at most. More are slower on a processor: its caches overflow.

    Raises:
        DiffinError: ``at_once`` is below 1; or stacking was insisted on and does not work.
    """
    if at_once is not None and at_once < 1:
        raise DiffinError(f"at_once={at_once}; pass how many runs to execute at once, 1 or more, or None")
    if method == "loop" or (at_once == 1 and method == "auto"):
        return Manner("loop", 1, "asked for")
    try:
        nbytes = _try_stacking(rerun)
    except Exception as error:  # whatever a model does that cannot be mapped
        if method == "vmap":
            raise DiffinError(
                f"method='vmap': this training cannot be stacked ({type(error).__name__}: {error}); pass method='auto'"
            ) from error
        _log.info("reruns are executed one after another: %s: %s", type(error).__name__, error)
        return Manner("loop", 1, f"{type(error).__name__}: {error}".splitlines()[0])
    on_cpu = rerun.loss.device.type == "cpu"
    budget, most = (_CPU_BYTES, _CPU_RUNS) if on_cpu else (_DEVICE_BYTES, _DEVICE_RUNS)
    chosen = at_once or max(1, min(most, budget // max(nbytes, 1)))
    if chosen == 1 and method == "auto":
        return Manner("loop", 1, f"a run takes {nbytes / 2**20:.0f} MiB, so that one at a time is as fast")
    return Manner("vmap", chosen)


def final_states(
    rerun: Rerun, weights: Tensor, manner: Manner, *, advance: Callable[[int], None] = lambda steps: None
) -> Iterator[State]:
    """The final state of every run, from the initial state of the recording.

    Args:
        rerun: the training; entered.
        weights: Float[Tensor, "R N"], by run, what the loss of each sample is multiplied by in its batches. The divisor of a
            batch's mean stays.
        manner: how; memory is taken by ``manner.at_once`` runs at a time.
        advance: called with the number of steps taken.
    """
    assert rerun.trajectory.initial is not None  # Rerun has refused by now
    first = rerun.state(rerun.trajectory.initial)
    for rows in torch.split(weights, manner.at_once):
        if manner.method == "loop":
            state = first
            while state.step < rerun.total_steps:
                state = rerun.advance(state, rows[0])
                advance(1)
            yield state
            continue
        state = stacked(first, len(rows))
        while state.step < rerun.total_steps:
            state = advance_stacked(rerun, state, rows)
            advance(len(rows))
        yield from (unstacked(state, number) for number in range(len(rows)))


def stacked(state: State, runs: int) -> State:
    """The state of as many runs, along a new first dimension of every tensor."""
    return _mapped(state, lambda t: t.unsqueeze(0).expand(runs, *t.shape).contiguous())


def unstacked(state: State, number: int) -> State:
    """The state of one run of a stack."""
    return _mapped(state, lambda t: t[number].clone())


def advance_stacked(rerun: Rerun, state: State, weights: Tensor) -> State:
    """The stacked states one step later: :meth:`Rerun.advance` of each.

    Args:
        rerun: the training; entered.
        state: of R runs, before the step.
        weights: Float[Tensor, "R N"], see :func:`final_states`.
    """
    parts = rerun.order(state.step)
    if not parts:
        return replace(state, step=state.step + 1)
    rerun.set_generators(state)
    parameters = {name: t.detach().requires_grad_() for name, t in state.parameters.items()}
    buffers = state.buffers
    objectives = []
    with torch.enable_grad(), warnings.catch_warnings():
        # An operation without a rule for stacks is looped over inside vmap: slower, and right.
        warnings.filterwarnings("ignore", message="There is a performance drop")
        for number, part in enumerate(parts):
            rerun.set_forward_generator(state.step, number)
            batch = rerun.batches.read(part.indices)

            def weighted_of_one(own: Vector, old: Vector, row: Tensor, batch: object = batch) -> tuple[Tensor, Vector]:
                # A copy each: the model updates its statistics in place.
                new = {name: t.clone() for name, t in old.items()}
                return rerun.loss.outcome({**own, **new}, batch).weighted(row), new

            rows = weights[:, torch.from_numpy(part.indices).to(weights.device)]
            weighted, buffers = vmap(weighted_of_one, randomness="same")(parameters, buffers, rows)
            objectives.append(weighted.sum() * part.share)
        objective = torch.stack(objectives).sum()
        gradients = torch.autograd.grad(objective, list(parameters.values()), allow_unused=True)
    found = {name: g for name, g in zip(parameters, gradients, strict=True) if g is not None}
    with torch.no_grad():
        moved, memory = _moved(rerun, state, found)
    buffers = {name: t.detach() for name, t in buffers.items()}
    return State(state.step + 1, moved, buffers, memory, randomness.capture() if rerun.draws else None)


def _moved(rerun: Rerun, state: State, gradients: Vector) -> tuple[Vector, Memory]:
    counts = dict(state.memory.counts)

    def one(parameters: Vector, slots: dict[str, Vector], gradients: Vector) -> tuple[Vector, dict[str, Vector]]:
        moved, memory = rerun.moved(state.step, parameters, Memory(slots, state.memory.counts), gradients)
        counts.update(memory.counts)
        return moved, memory.slots

    moved, slots = vmap(one)(dict(state.parameters), state.memory.slots, gradients)
    return moved, Memory(slots, counts)


def _try_stacking(rerun: Rerun) -> int:
    """Bytes that each run of a stack takes.

    Raises:
        Exception: the training cannot be stacked, or gives something else than the loop.
    """
    assert rerun.trajectory.initial is not None  # Rerun has refused by now
    first = rerun.state(rerun.trajectory.initial)
    generator = torch.Generator().manual_seed(0)
    size = rerun.trajectory.dataset_size or 0
    weights = torch.rand(2, size, generator=generator).to(rerun.loss.device)
    saved = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal saved
        saved += tensor.numel() * tensor.element_size()
        return tensor

    together, alone = stacked(first, 2), [first, first]
    taken = 0
    while taken < _TRIAL_STEPS and together.step < rerun.total_steps:
        taken += bool(rerun.order(together.step))
        saved = 0
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            together = advance_stacked(rerun, together, weights)
        alone = [rerun.advance(state, own) for state, own in zip(alone, weights, strict=True)]
    for number, state in enumerate(alone):
        _check_agreement(first, unstacked(together, number), state)
    return saved // 2 + _STATES_HELD * first.nbytes()


def _check_agreement(first: State, ours: State, theirs: State) -> None:
    if any(not torch.equal(t, ours.buffers[n]) for n, t in theirs.buffers.items() if not torch.is_floating_point(t)):
        raise ArithmeticError("stacked runs count something else than single ones")
    for start, found, expected in (
        (first.parameters, ours.parameters, theirs.parameters),
        (floating(first.buffers), floating(ours.buffers), floating(theirs.buffers)),
    ):
        travelled = vectors.norm(vectors.add(expected, start, -1.0))
        missed = vectors.norm(vectors.add(found, expected, -1.0))
        if not missed <= _tolerance(expected) * travelled:
            raise ArithmeticError(f"stacked runs miss single ones by {missed:.2g} of {travelled:.2g} travelled")


def _tolerance(vector: Mapping[str, Tensor]) -> float:
    """Rounding may grow: the first steps of Adam divide a gradient by its own size."""
    return 3 * max((math.sqrt(torch.finfo(t.dtype).eps) for t in vector.values()), default=0.0)


def _mapped(state: State, function: Callable[[Tensor], Tensor]) -> State:
    def over(vector: Mapping[str, Tensor]) -> Vector:
        return {name: function(t) for name, t in vector.items()}

    slots = {key: over(vector) for key, vector in state.memory.slots.items()}
    memory = Memory(slots, state.memory.counts)
    return replace(state, parameters=over(state.parameters), buffers=over(state.buffers), memory=memory)
