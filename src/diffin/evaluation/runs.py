"""The trainings behind a truth, executed part by part."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffin.evaluation.expected import described
from diffin.evaluation.parts import Arrays, Parts
from diffin.evaluation.question import Question
from diffin.evaluation.truth import Floats, Kind, Truth
from diffin.evaluation.workers import mapped
from diffin.progress import phase
from diffin.rerun import Rerun
from diffin.rerun.many import Manner, Method, choose_manner, final_states
from diffin.sources import Indices

_log = logging.getLogger(__name__)

_RUNS_IN_A_LOOP = 4
"""How many trainings a part holds that are executed one by one: what a kill can lose."""

_BASE = -1
"""Number of the run in which every sample has weight 1."""


@dataclass(frozen=True)
class Change:
    """Weights of a run: one for some samples, another for the rest.

    Attributes:
        samples: Int64[ndarray, "size"].
        inside: weight of those.
        outside: weight of the others.
    """

    samples: Indices
    inside: float
    outside: float


@dataclass(frozen=True)
class Part:
    """Runs that are executed and stored together.

    Attributes:
        order: number of the order.
        runs: numbers of their changes, or the base.
    """

    order: int
    runs: tuple[int, ...]


def parts_of(runs: int, orders: int, manner: Manner) -> list[Part]:
    """All parts.

    Stacked, every part has a base of its own, so that the two losses of a difference come out of the same operations on the
    same shapes. One by one, that is so for all, and an order has one base.
    """
    found: list[Part] = []
    for order in range(orders):
        if manner.method == "loop":
            found.append(Part(order, (_BASE,)))
            groups = [range(start, min(start + _RUNS_IN_A_LOOP, runs)) for start in range(0, runs, _RUNS_IN_A_LOOP)]
            found += [Part(order, tuple(group)) for group in groups]
        else:
            size = max(1, manner.at_once - 1)
            groups = [range(start, min(start + size, runs)) for start in range(0, runs, size)]
            found += [Part(order, (_BASE, *group)) for group in groups]
    return found


def retrain(
    kind: Kind,
    question: Question,
    changes: Sequence[Change],
    seeds: Sequence[int],
    *,
    output: str | Path | None,
    resume: bool,
    progress: bool,
    processes: int,
    method: Method,
    at_once: int | None,
) -> Truth:
    """The truth about changes, by training with each in each order; in the recorded one if there are no seeds."""
    identity = {"kind": kind, "samples and weights": _digest(changes), "orders": list(seeds), **question.identity()}
    store = Parts(output, identity, resume=resume)
    if (found := store.complete()) is not None:
        return found

    def begin() -> dict[str, Any]:
        distance = question.check_repeats()
        with question.recorded.entered():
            manner = choose_manner(question.recorded, method=method, at_once=at_once)
        # Stacks of equal size, and one for each process at least.
        runs = -(-len(changes) // max(1, -(-processes // max(1, len(seeds)))))
        stacks = max(1, -(-runs // max(1, manner.at_once - 1)))
        even = 1 if manner.method == "loop" else -(-runs // stacks) + 1
        return {"repeated_to": distance, **asdict(manner), "at_once": min(manner.at_once, even)}

    settings = store.settings(begin)
    manner = Manner(settings["method"], settings["at_once"], settings["reason"])
    orders: list[int | None] = list(seeds) or [None]
    parts = parts_of(len(changes), len(orders), manner)

    @lru_cache(maxsize=1)
    def rerun(order: int) -> Rerun:
        return question.rerun(orders[order])

    def execute(number: int, advance: Callable[[int], None]) -> Arrays:
        part, start = parts[number], time.perf_counter()
        repeated = rerun(part.order)
        # In double precision wherever it exists: weights of nearly 1 shall be what they say.
        device = question.loss.device
        dtype = torch.float32 if device.type == "mps" else torch.float64
        weights = torch.ones(len(part.runs), question.size, device=device, dtype=dtype)
        for row, run in zip(weights, part.runs, strict=True):
            if run != _BASE:
                row[:] = changes[run].outside
                row[torch.from_numpy(changes[run].samples).to(device)] = changes[run].inside
        with repeated.entered():
            losses = [question.losses(state) for state in final_states(repeated, weights, manner, advance=advance)]
        return {"losses": np.stack(losses), "seconds": np.array(time.perf_counter() - start)}

    missing = store.missing(len(parts))
    steps = question.trajectory.total_steps
    left = sum(len(parts[number].runs) for number in missing) * steps
    with phase(f"retraining {len(changes):,} times (steps)", left, show=progress) as bar:
        for number, arrays in mapped(execute, missing, processes=processes, advance=bar.advance):
            store.write(number, arrays)
            if not seeds and parts[number].runs[0] == _BASE:
                question.check_base(arrays["losses"][0])
    losses, base, seconds = _gathered(store, parts, len(changes), len(orders))
    if not seeds:
        question.check_base(base[0])
    return store.finish(_truth(kind, question, changes, seeds, losses, described(question, store, settings, seconds)))


def _gathered(store: Parts, parts: Sequence[Part], runs: int, orders: int) -> tuple[Floats, Floats, float]:
    """What each change did, Float64[ndarray, "K G 1+singles"], the base of each order, and the seconds."""
    made = [store.read(number) for number in range(len(parts))]
    width = made[0]["losses"].shape[1]
    bases, effects = np.full((orders, width), np.nan), np.full((orders, runs, width), np.nan)
    for part, arrays in zip(parts, made, strict=True):
        rows, losses = np.array(part.runs), arrays["losses"]
        if rows[0] == _BASE:  # of this part, or of the parts of this order that follow
            bases[part.order] = losses[0]
            rows, losses = rows[1:], losses[1:]
        effects[part.order, rows] = bases[part.order] - losses
    effects[~np.isfinite(effects)] = np.nan
    return effects, bases, float(sum(arrays["seconds"] for arrays in made))


def _truth(
    kind: Kind,
    question: Question,
    changes: Sequence[Change],
    seeds: Sequence[int],
    effects: Floats,
    metadata: dict[str, Any],
) -> Truth:
    first = changes[0]
    if kind == "lds":
        # Of the subset, minus that of all.
        weight, kept_weight, effects = first.outside, first.inside, -effects
    else:
        weight, kept_weight, effects = first.inside, first.outside, effects / (1 - first.inside)
    failed = int(np.isnan(effects[:, :, 0]).any(axis=0).sum())
    if failed:
        _log.warning(
            "%d of %d trainings came to a query loss that is not finite; they are left out", failed, len(changes)
        )
    return Truth(
        kind=kind,
        groups=tuple(change.samples for change in changes),
        replicas=effects[:, :, 0],
        order_seeds=tuple(seeds),
        weight=weight,
        kept_weight=kept_weight,
        per_query=None if question.singles is None else effects[:, :, 1:].mean(axis=0).T,
        queries=question.singles,
        metadata=metadata,
    )


def _digest(changes: Sequence[Change]) -> str:
    total = hashlib.sha256()
    for change in changes:
        total.update(f"{change.inside!r} {change.outside!r} {len(change.samples)}".encode())
        total.update(change.samples.astype("<i8").tobytes())
    return total.hexdigest()[:16]
