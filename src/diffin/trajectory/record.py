"""Recording a training: three lines in any loop."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from diffin.errors import RecordingError
from diffin.task import is_compiled, unwrapped
from diffin.trajectory import clipping, randomness, states, surroundings
from diffin.trajectory.forwards import ForwardWatch
from diffin.trajectory.indices import Indices, copied, on_host
from diffin.trajectory.journal import Journal, PendingDivision, PendingStep, rewind, start
from diffin.trajectory.optimizers import GroupReader, buffers, describe, rate, restore_buffers
from diffin.trajectory.schedule import LogSpaced, plan
from diffin.trajectory.states import Contents, StoredState
from diffin.trajectory.steps import Clipping, IntArray
from diffin.trajectory.store import Manifest, Store, shapes

_log = logging.getLogger(__name__)


class Recorder:
    """Writes down a training: its states at some steps, and what every step used.

    ::

        with diffin.Recorder("runs/a", model, optimizer, dataset_size=N, total_steps=T, checkpoints=10) as recorder:
            for inputs, targets, indices in loader:
                ...; loss.backward(); optimizer.step(); recorder.step(indices); scheduler.step(); optimizer.zero_grad()

    Create it when model and optimizer are ready to take the first step. Learning rates are read as the optimizer steps,
    so the scheduler may come before or after :meth:`step`. A training that is killed leaves a readable trajectory.

    Args:
        path: folder to write; must be new or empty unless ``resume`` is given.
        model: what is trained, wrapped (DistributedDataParallel, torch.compile) or not; names are the inner module's.
        optimizer: the optimizer, all of whose parameters belong to ``model``.
        dataset_size: samples in the training set.
        total_steps: optimizer steps that will be taken, if known; skipped ones count.
        checkpoints: how many, evenly spaced over the training; or :class:`LogSpaced`; or step numbers. With
            ``total_steps`` unknown, between ``checkpoints`` and twice as many are kept.
        grad_scaler: the gradient scaler of mixed precision, so that the steps it skips are recorded as skipped.
        resume: ``"latest"`` puts the newest stored state into model, optimizer, scaler and random number generators,
            and a new recording starts if there is none; a number says that the caller has restored a state that took
            so many steps. What was recorded beyond is dropped. Learning rates are the caller's: advance the scheduler
            to ``steps_taken``.
        obstacles: why the training cannot be repeated from the recording, one sentence each, where the caller knows
            something that the recorder does not see.

    Attributes:
        path: the folder.

    Raises:
        RecordingError: what is asked for cannot be recorded, or the path holds something else.
    """

    def __init__(
        self,
        path: str | Path,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        dataset_size: int,
        total_steps: int | None = None,
        checkpoints: int | LogSpaced | Iterable[int] = 10,
        grad_scaler: torch.amp.GradScaler | None = None,
        resume: Literal["latest"] | int | None = None,
        obstacles: Sequence[str] = (),
    ) -> None:
        _check_arguments(optimizer, dataset_size, resume)
        optimizer = surroundings.unwrapped_optimizer(optimizer)
        self._model, self._optimizer, self._scaler = unwrapped(model), optimizer, grad_scaler
        self._parameters = dict(self._model.named_parameters())
        states.check_storable(self._tensors())
        self._names = {parameter: name for name, parameter in self._parameters.items()}
        self._reader = GroupReader(optimizer)
        self._dataset_size = int(dataset_size)
        self._planned = total_steps
        self._schedule = plan(checkpoints, total_steps)
        store = Store(path)
        self.path = store.path
        manifest = Manifest(
            dataset_size=self._dataset_size,
            planned_steps=total_steps,
            complete=False,
            optimizer=describe(optimizer, self._names),
            shapes=shapes(self._parameters),
            schedule=self._schedule.to_json(),
            environment={
                **surroundings.environment(self._parameters, grad_scaler),
                **({"obstacles": list(obstacles)} if obstacles else {}),
            },
        )
        if not manifest.optimizer.supported:
            _log.warning(
                "the update formula of %s is unknown to diffin; estimators may refuse it", manifest.optimizer.kind
            )
        taken, self._expected_rates = self._begin(store, manifest, resume)
        self._journal = Journal(store, manifest, self._schedule, self._reader, taken)
        self._first, self._taken = taken, taken
        if not self._journal.has_state(taken):
            self._write_state(chosen=self._schedule.includes(taken))
        self._flush_next = True
        self._closed = False
        self._used: tuple[tuple[Any, ...], tuple[Any, ...], bool | Tensor] | None = None
        self._batches: list[IntArray | Tensor] = []
        self._coefficient: Tensor | None = None
        self._clipping: Clipping | None = None
        self._sums: Tensor | None = surroundings.parameter_sums(self._parameters)
        self._watch = clipping.ClippingWatch(optimizer)
        # Hooks would break the graph of a compiled model, or not be called.
        self._forwards = ForwardWatch(None if is_compiled(model) else self._model)
        self._hook = optimizer.register_step_pre_hook(self._before_optimizer_step)

    @property
    def steps_taken(self) -> int:
        """Optimizer steps recorded so far, those before an interruption included."""
        return self._taken

    def accumulate(self, indices: Indices) -> None:
        """Record the samples of a micro-batch whose gradients wait for the optimizer step.

        Raises:
            RecordingError: the indices are not positions in the training set.
        """
        self._check_open()
        self._batches.append(self._copied(indices))

    def step(
        self,
        indices: Indices | None = None,
        *,
        divisors: Sequence[float | Tensor] | None = None,
        items: float | Tensor | None = 1.0,
    ) -> None:
        """Record the optimizer step just taken.

        Args:
            indices: samples of its batch (after :meth:`accumulate`: of its last micro-batch, or ``None`` if all were
                given). Without them the step cannot be replayed; checkpoints need none.
            divisors: for each micro-batch (for the one batch without accumulation), what the sum of its losses was divided by
                in the objective of the step. By default its number of samples, times the number of micro-batches.
            items: with ``divisors``, how many items each sample has whose losses are summed, if all have as many; ``None``
                (or a NaN) if they differ: the tokens of sequences, where the objective is a mean over tokens. Such a step
                can be replayed with a task whose losses are sums.

        Raises:
            RecordingError: the optimizer took no step, an index is out of range, or the disk is full.
        """
        self._check_open()
        batches = (*self._batches, self._copied(indices)) if indices is not None else tuple(self._batches)
        division = None if divisors is None or not batches else PendingDivision(tuple(divisors), items)
        if division is not None and len(division.divisors) != len(batches):
            raise RecordingError(
                f"divisors has {len(division.divisors)} entries for {len(batches)} micro-batches: pass one for each"
            )
        rates, constants, skipped = self._used if self._used is not None else self._skipped()
        drawn = self._forwards.take()
        clipped = self._coefficient, self._clipping
        self._journal.append(PendingStep(rates, constants, batches, *clipped, skipped, drawn, division))
        self._taken += 1
        self._used, self._coefficient, self._clipping = None, None, None
        self._batches.clear()
        if self._schedule.includes(self._taken):
            self._write_state(chosen=True)
            # The rates of the next step belong to this checkpoint: they must not be lost with the process.
            self._flush_next = True
        elif self._flush_next or self._journal.is_full():
            self._journal.flush()
            self._flush_next = False

    def clip_grad_norm_(self, max_norm: float, norm_type: float = 2.0) -> Tensor:
        """Clip the gradients of the optimizer's parameters like ``torch.nn.utils.clip_grad_norm_``, and record it.

        With mixed precision, call ``grad_scaler.unscale_(optimizer)`` first.

        Returns:
            The norm before clipping.
        """
        self._check_open()
        self._refuse_second_clipping()
        norm, self._coefficient = clipping.clip(self._optimizer, max_norm, norm_type)
        self._clipping = Clipping(float(max_norm), float(norm_type))
        return norm

    def note_clipping(self, norm: Tensor | float, max_norm: float, norm_type: float = 2.0) -> None:
        """Record that somebody else clips the gradients of this step, as ``torch.nn.utils.clip_grad_norm_`` does.

        Args:
            norm: of the gradients before.
            max_norm: what it is clipped to.
            norm_type: which norm.
        """
        self._check_open()
        self._refuse_second_clipping()
        self._coefficient = clipping.coefficient(torch.as_tensor(norm), max_norm)
        self._clipping = Clipping(float(max_norm), float(norm_type))

    def _refuse_second_clipping(self) -> None:
        if self._coefficient is not None:
            raise RecordingError(
                "clip_grad_norm_ was called twice for one optimizer step: clip once, after the last backward"
            )

    def flush(self) -> None:
        """Write down the steps that wait in memory, e.g. before the loop saves a state of its own to go on from.

        Raises:
            RecordingError: the disk is full.
        """
        self._check_open()
        self._journal.flush()

    def close(self) -> None:
        """Write what waits and the final state, and mark the trajectory complete. Later calls do nothing.

        Raises:
            RecordingError: the optimizer took a step that was not recorded, or the disk is full.
        """
        if self._closed:
            return
        if self._used is not None:
            self._abandon()
            raise RecordingError(
                f"the optimizer took a step after the last recorder.step (step {self._taken}): call "
                "recorder.step(indices) after every optimizer.step(). The trajectory is readable, but not marked "
                "complete"
            )
        self._release()
        if self._planned is not None and not 0.9 * self._planned <= self._taken <= self._planned:
            _log.warning(
                "%d steps were taken and total_steps=%d were announced, so the checkpoints are not spread over the training; "
                "pass epochs * len(loader), or leave total_steps out",
                self._taken, self._planned,
            )  # fmt: skip
        if not self._journal.has_state(self._taken):
            self._write_state(chosen=False)
        self._journal.flush()
        self._journal.complete()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._abandon()

    def _begin(
        self, store: Store, manifest: Manifest, resume: str | int | None
    ) -> tuple[int, tuple[float, ...] | None]:
        """Make or rewind the folder. Returns the steps it has, and the rates that the next one had before."""
        if store.is_empty() and resume in (None, "latest", 0):
            start(store, manifest)
            return 0, None
        if resume is None:
            raise RecordingError(
                f"{store.path} is not empty: record to another path, delete it, or go on with what it holds by "
                "resume='latest' (restores the newest state) or resume=<steps> (you have restored the state yourself)"
            )
        resumption = rewind(store, manifest, None if resume == "latest" else int(resume))
        if resume == "latest" and resumption.state is not None:
            self._restore(resumption.state)
        return resumption.taken, resumption.next_rates

    def _restore(self, state: StoredState) -> None:
        if state.left_out:
            raise RecordingError(
                f"{state.path} lacks the optimizer state {', '.join(state.left_out)}, which could not be stored: "
                "restore a state of your own and say resume=<steps it took>"
            )
        stored = state.model()
        for name, parameter in self._parameters.items():
            if name not in stored or stored[name].shape != parameter.shape:
                raise RecordingError(f"{state.path} lacks {name!r} of the shape it has here; restore it from a copy")
        with torch.no_grad():
            for name, tensor in self._tensors().items():
                if name in self._parameters or (name in stored and stored[name].shape == tensor.shape):
                    tensor.copy_(stored[name])
                else:
                    _log.warning("the buffer %r is not in %s with that shape and keeps its value", name, state.path)
        try:
            restore_buffers(self._optimizer, self._names, state.optimizer())
            if self._scaler is not None and state.grad_scaler:
                self._scaler.load_state_dict(state.grad_scaler)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise RecordingError(
                f"the optimizer's state in {state.path} is damaged ({error}); restore it from a copy"
            ) from error
        randomness.restore(*state.rng())

    def _before_optimizer_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._used is not None:
            raise RecordingError(
                "the optimizer is about to step a second time without recorder.step in between: call "
                "recorder.step(indices) after every optimizer.step()"
            )
        self._reader.check_unchanged()
        if self._sums is not None:
            self._check_start()
        has_closure = len(args) > 1 or bool(kwargs.get("closure"))
        looked_at = self._flush_next or self._is_early()
        # A closure makes the gradients inside the step: what is there now is older.
        if looked_at and self._coefficient is None and not has_closure:
            found = self._watch.look()
            if found is not None:
                raise RecordingError(
                    f"the gradients are clipped before the optimizer uses them ({found}), which the recorder did "
                    "not see: replace torch.nn.utils.clip_grad_norm_(parameters, c) by "
                    "recorder.clip_grad_norm_(c); clipping by value cannot be recorded"
                )
        # Fused optimizers under a gradient scaler always step, and skip inside if this tensor says so.
        skipped = getattr(optimizer, "found_inf", None)
        self._used = (self._reader.rates(), self._reader.snapshot(), False if skipped is None else skipped)
        if self._expected_rates is not None:
            self._compare_rates(self._expected_rates)

    def _skipped(self) -> tuple[tuple[Any, ...], tuple[Any, ...], bool]:
        """What a step used that the optimizer did not take; only a gradient scaler may have kept it from it."""
        if self._scaler is None or not self._scaler.is_enabled():
            raise RecordingError(
                "recorder.step was called, but the optimizer took no step since the last time. For gradient "
                "accumulation, call recorder.accumulate(indices) for the micro-batches before the last; for mixed "
                "precision, pass grad_scaler=scaler to the Recorder; and give the Recorder the optimizer that steps"
            )
        if not _overflowed(self._parameters):
            raise RecordingError(
                "recorder.step was called, but the optimizer took no step although all gradients are finite, so "
                "the gradient scaler did not skip it: call scaler.step(optimizer) first, and "
                "recorder.accumulate(indices) for the micro-batches before the last"
            )
        return self._reader.rates(), self._reader.snapshot(), True

    def _copied(self, indices: Indices) -> IntArray | Tensor:
        copy = copied(indices)
        # Later ones are checked when they are written, many at once: a check costs more than the rest of the record.
        return on_host(copy, self._taken, self._dataset_size) if self._is_early() else copy

    def _is_early(self) -> bool:
        """Whether the recording is so young that mistakes should be looked for, whatever that costs."""
        return self._taken - self._first < clipping.FIRST_STEPS

    def _check_start(self) -> None:
        now = surroundings.parameter_sums(self._parameters)
        same = torch.allclose(now, self._sums, rtol=1e-6, atol=1e-6, equal_nan=True) if self._sums is not None else True
        self._sums = None
        if not same:
            raise RecordingError(
                "the model's parameters changed between creating the Recorder and the first step, so the stored "
                "initial state is not the one training starts from: create the Recorder after initialising or "
                "loading the model"
            )

    def _compare_rates(self, expected: tuple[float, ...]) -> None:
        self._expected_rates = None
        if self._used is not None and not np.allclose(
            [rate(r) for r in self._used[0]], expected, rtol=1e-6, atol=0, equal_nan=True
        ):
            _log.warning(
                "step %d used the learning rates %s before the interruption and %s now: was the scheduler advanced to "
                "recorder.steps_taken?", self._taken, expected, self._used[0],
            )  # fmt: skip

    def _write_state(self, *, chosen: bool) -> None:
        tensors, values, left_out = buffers(self._optimizer, self._names)
        rng, rng_values = randomness.capture()
        self._journal.write_state(
            Contents(
                step=self._taken,
                chosen=chosen,
                model=self._tensors(),
                optimizer=tensors,
                optimizer_values=values,
                left_out=left_out,
                rng=rng,
                rng_values=rng_values,
                grad_scaler=self._scaler.state_dict() if self._scaler is not None else None,
            )
        )

    def _tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers, those that ``state_dict`` leaves out included, each once."""
        return {**self._parameters, **dict(self._model.named_buffers())}

    def _abandon(self) -> None:
        """Close after a failure: keep what is known, claim nothing."""
        if self._closed:
            return
        self._release()
        try:
            self._journal.flush()
        except RecordingError as error:
            # The failure that brought us here is the one to show.
            _log.warning("the last steps were not recorded: %s", error)

    def _release(self) -> None:
        self._closed = True
        self._hook.remove()
        self._watch.close()
        self._forwards.close()

    def _check_open(self) -> None:
        if self._closed:
            raise RecordingError(
                "the recorder is closed: call it inside its with block, or create one with resume='latest'"
            )


def _check_arguments(optimizer: object, dataset_size: object, resume: object) -> None:
    if not isinstance(optimizer, Optimizer):
        raise RecordingError(
            f"optimizer is a {type(optimizer).__name__}: pass the torch.optim.Optimizer that takes the steps"
        )
    if isinstance(dataset_size, bool) or not isinstance(dataset_size, (int, np.integer)) or dataset_size < 1:
        raise RecordingError(
            f"dataset_size={dataset_size!r} must be the number of samples in the training set, at least 1"
        )
    is_steps = isinstance(resume, (int, np.integer)) and not isinstance(resume, bool) and resume >= 0
    if resume is not None and resume != "latest" and not is_steps:
        raise RecordingError(f"resume={resume!r} must be 'latest', a number of steps, or None")
    if torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_rank() != 0:
        raise RecordingError("create the Recorder in the process of rank 0 only: processes would write over each other")


def _overflowed(parameters: dict[str, nn.Parameter]) -> bool:
    """Whether gradients hold an infinity or NaN, or are gone, so that nobody can tell any more."""
    gradients = [p.grad for p in parameters.values() if p.grad is not None]
    if not all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
        return True
    return not any(bool(gradient.any()) for gradient in gradients)
