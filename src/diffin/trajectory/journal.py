"""The writing half of a recording: steps wait in memory and go to disk in segments, states follow their steps."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from safetensors import SafetensorError
from torch import Tensor

from diffin.errors import RecordingError
from diffin.trajectory import states
from diffin.trajectory.indices import on_host
from diffin.trajectory.optimizers import GroupReader, plain, rate
from diffin.trajectory.schedule import Schedule
from diffin.trajectory.states import Contents, StoredState
from diffin.trajectory.steps import Clipping, Division, IntArray, StepLog, StepRecord, drop_from, write_segment
from diffin.trajectory.store import Manifest, Store

SEGMENT_STEPS = 1000
"""Steps that wait in memory at most."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PendingDivision:
    """See :class:`diffin.trajectory.steps.Division`; tensors become numbers when it is written."""

    divisors: tuple[float | Tensor, ...]
    items: float | Tensor | None

    def resolved(self, sizes: list[int]) -> Division | None:
        """As it is written; ``None`` where it says what holds anyway."""
        divisors = tuple(float(divisor) for divisor in self.divisors)
        items = None if self.items is None else float(self.items)
        items = None if items is None or math.isnan(items) else items
        usual = tuple(float(len(sizes) * size) for size in sizes)
        return None if items == 1 and divisors == usual else Division(divisors, items)


@dataclass(frozen=True, slots=True)
class PendingStep:
    """A step as it was taken down, without waiting for an accelerator: tensors become numbers when it is written."""

    rates: tuple[Any, ...]
    constants: tuple[Any, ...]
    indices: tuple[IntArray | Tensor, ...]
    clip_coefficient: Tensor | None
    clipping: Clipping | None
    skipped: bool | Tensor
    randomness: tuple[bytes | None, ...] | None
    division: PendingDivision | None = None

    def resolved(self, step: int, reader: GroupReader, dataset_size: int) -> StepRecord:
        skipped = bool(self.skipped)
        # The gradients of a skipped step were not finite, so what they would have been scaled by means nothing.
        coefficient = None if skipped or self.clip_coefficient is None else float(plain(self.clip_coefficient))
        batches = [on_host(part, step, dataset_size) for part in self.indices]
        return StepRecord(
            learning_rates=tuple(rate(value) for value in self.rates),
            indices=np.concatenate(batches) if batches else None,
            micro_batches=tuple(map(len, batches)) if len(batches) > 1 else None,
            clip_coefficient=coefficient,
            clipping=self.clipping,
            skipped=skipped,
            constants=reader.plain(self.constants),
            randomness=self.randomness,
            division=None if self.division is None else self.division.resolved(list(map(len, batches))),
        )


class Journal:
    """Steps and states on their way to the folder of a trajectory.

    Args:
        store: the folder.
        manifest: what was written there.
        schedule: which states to keep as checkpoints.
        reader: of the optimizer's groups.
        taken: steps that the folder already has.
    """

    def __init__(self, store: Store, manifest: Manifest, schedule: Schedule, reader: GroupReader, taken: int) -> None:
        self._store, self._manifest, self._schedule, self._reader = store, manifest, schedule, reader
        self._pending: list[PendingStep] = []
        self._flushed = taken
        found = states.stored(store.checkpoints)
        self._stored = {state.step for state in found}
        self._chosen = {state.step for state in found if state.chosen}
        if taken in self._stored and taken not in self._chosen and schedule.includes(taken):
            next(state for state in found if state.step == taken).set_chosen()
            self._chosen.add(taken)

    def has_state(self, step: int) -> bool:
        return step in self._stored

    def append(self, step: PendingStep) -> None:
        self._pending.append(step)

    def is_full(self) -> bool:
        return len(self._pending) >= SEGMENT_STEPS

    def flush(self) -> None:
        """Write what waits; it goes on waiting if that fails."""
        if not self._pending:
            return
        size = self._manifest.dataset_size
        records: list[StepRecord] = []
        try:
            for step in self._pending:
                records.append(step.resolved(self._flushed + len(records), self._reader, size))
        finally:
            # One that cannot be written (an index out of range) must not take those before it along.
            if records:
                with self._writing():
                    write_segment(self._store.steps, self._flushed, records)
                self._flushed += len(records)
                del self._pending[: len(records)]

    def write_state(self, contents: Contents) -> None:
        """Store a state, after the steps that led to it; and drop checkpoints that the schedule no longer wants."""
        self.flush()
        with self._writing():
            if contents.chosen:
                for step in sorted(self._chosen):
                    if step > 0 and not self._schedule.keeps(step, contents.step):
                        states.remove(self._store.checkpoints / states.folder_name(step))
                        self._chosen.discard(step)
                        self._stored.discard(step)
                self._chosen.add(contents.step)
            states.write(self._store.checkpoints / states.folder_name(contents.step), contents)
        self._stored.add(contents.step)

    def complete(self) -> None:
        """Say that the training came to its end."""
        with self._writing():
            self._store.write_manifest(self._manifest.marked(complete=True))

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with writing(self._store, f"everything up to step {self._flushed} is on disk and readable"):
            yield


@contextmanager
def writing(store: Store, kept: str) -> Iterator[None]:
    """Turn what a full or failing disk raises into an error that says what is safe."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise RecordingError(
            f"could not write to {store.path} ({error}); {kept}. Free some space, then go on with resume='latest'"
        ) from error


def start(store: Store, manifest: Manifest) -> None:
    """Make the folder of a new trajectory."""
    with writing(store, "nothing was recorded yet"):
        store.path.mkdir(parents=True, exist_ok=True)
        store.write_manifest(manifest)
        store.create()


@dataclass(frozen=True)
class Resumption:
    """Where a recording goes on.

    Attributes:
        taken: steps that stay.
        state: the stored state there, if there is one.
        next_rates: learning rates of the first step that was dropped, if one was.
    """

    taken: int
    state: StoredState | None
    next_rates: tuple[float, ...] | None


def rewind(store: Store, wanted: Manifest, resume: int | None) -> Resumption:
    """Make an existing trajectory end where training goes on; killed in between, it can be rewound again.

    Args:
        store: the folder.
        wanted: the manifest as a new recording would have it; it must describe the same training.
        resume: steps to keep, or ``None`` for the newest stored state.

    Raises:
        RecordingError: what is stored belongs to another training, or does not reach so far.
    """
    manifest = store.read_manifest()
    _check_same(store, manifest, wanted)
    with writing(store, "nothing was changed"):
        store.create()
    log = StepLog(store.steps, len(manifest.optimizer.groups))
    found = {state.step: state for state in states.stored(store.checkpoints)}
    taken = max((step for step in found if step <= len(log)), default=0) if resume is None else resume
    if taken > len(log):
        raise RecordingError(
            f"resume={taken}, but {store.path} has only {len(log)} steps: restore an earlier state, or record elsewhere"
        )
    if resume is None and taken not in found and len(log):
        raise RecordingError(
            f"{store.path} has {len(log)} steps but no stored state to resume from: restore one of your own and say "
            "resume=<steps it took>"
        )
    if manifest.schedule != wanted.schedule and taken:
        _log.warning(
            "%s: other checkpoints are asked for than before; those already stored stay, so the spacing changes at "
            "step %d",
            store.path, taken,
        )  # fmt: skip
    rates = tuple(log.learning_rates[taken].tolist()) if taken < len(log) else None
    with writing(store, "the trajectory is still readable"):
        resumed_at = (*(step for step in manifest.resumed_at if step < taken), taken)
        store.write_manifest(replace(wanted, resumed_at=resumed_at))
        for step in sorted(found, reverse=True):
            if step > taken:
                states.remove(found[step].path)
        drop_from(store.steps, taken)
    return Resumption(taken, found.get(taken), rates)


def _check_same(store: Store, manifest: Manifest, wanted: Manifest) -> None:
    def refuse(what: str, stored: object, given: object) -> None:
        if stored != given:
            raise RecordingError(
                f"{store.path} cannot be resumed: {what} is {given} here and {stored} there. Use the arguments of the "
                "interrupted run, or record to another path"
            )

    refuse("dataset_size", manifest.dataset_size, wanted.dataset_size)
    refuse("the optimizer", manifest.optimizer.kind, wanted.optimizer.kind)
    strangers = sorted(set(manifest.shapes) ^ set(wanted.shapes))
    if strangers:
        raise RecordingError(
            f"{store.path} cannot be resumed: it records another model ({strangers[0]!r} is a parameter of only one of "
            "the two). Use the model of the interrupted run, or record to another path"
        )
    for name, shape in manifest.shapes.items():
        refuse(f"the shape of {name!r}", shape, wanted.shapes[name])
    names = [[group.names for group in m.optimizer.groups] for m in (manifest, wanted)]
    if names[0] != names[1]:
        raise RecordingError(
            f"{store.path} cannot be resumed: the optimizer has its parameters in other groups or another order. "
            "Build it as in the interrupted run, or record to another path"
        )
