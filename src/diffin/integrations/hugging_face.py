"""Recording a training of Hugging Face's ``transformers.Trainer``: one callback.

::

    from diffin.integrations.hugging_face import RecorderCallback

    trainer = Trainer(model, arguments, train_dataset=train, callbacks=[RecorderCallback("runs/a")])
    trainer.train()
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffin.errors import MissingDependencyError, RecordingError
from diffin.integrations.batch_order import NotedBatches, leave_batches, note_batches
from diffin.integrations.loss_scale import LossScaleWatch
from diffin.task import is_compiled
from diffin.trajectory import LogSpaced, Recorder

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as error:
    raise MissingDependencyError(
        "diffin.integrations.hugging_face needs transformers and accelerate: pip install 'diffin[hf]'"
    ) from error

_log = logging.getLogger(__name__)

_SHARDED = ("FSDP", "DEEPSPEED", "MEGATRON_LM", "XLA", "TP")


class RecorderCallback(TrainerCallback):
    """Records every optimizer step of a ``transformers.Trainer``.

    The Trainer trains as it would without. Samples are known by their position in its ``train_dataset``, in whatever order it
    draws them. Its gradients are clipped here instead of by the Trainer, in the same way, so that it can be written down by
    how much.

    With ``trainer.train(resume_from_checkpoint=...)`` the recording goes on in the same folder, from the step of that
    checkpoint.

    Args:
        path: folder to write; must be new or empty, unless the training resumes.
        dataset_size: samples in the training set; its length by default.
        checkpoints: as of :class:`diffin.Recorder`.

    Raises:
        RecordingError: when training begins, if the run cannot be recorded (parameters in shards, ``auto_find_batch_size``).
    """

    def __init__(
        self, path: str | Path, *, dataset_size: int | None = None, checkpoints: int | LogSpaced | Iterable[int] = 10
    ) -> None:
        self.path = Path(path)
        self._dataset_size, self._checkpoints = dataset_size, checkpoints
        self._recorder: Recorder | None = None
        self._noted: NotedBatches | None = None
        self._scale: LossScaleWatch | None = None
        self._batches: list[Any] = []
        self._max_norm: float | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any
    ) -> None:
        """Begin, or go on with, the recording."""
        self._abandon(args)
        optimizer, model, loader = parts["optimizer"], parts["model"], parts["train_dataloader"]
        _refuse(args, optimizer)
        if not state.is_world_process_zero:
            return
        size = self._dataset_size if self._dataset_size is not None else _length(loader)
        if size is None:
            raise RecordingError(
                "the training set does not say how many samples it has: pass RecorderCallback(path, dataset_size=...)"
            )
        self._recorder = self._start(args, state, model, optimizer, size)
        # As in the Recorder: hooks would break the graph of a compiled model.
        self._scale = (
            None if is_compiled(model) else LossScaleWatch(model, accumulates=args.gradient_accumulation_steps > 1)
        )
        self._noted = note_batches(loader)
        if self._noted is None:
            _log.warning("the samples of the batches cannot be known (a stream, or batches out of order)")
        elif state.global_step and not args.ignore_data_skip:
            self._noted.skip(_skipped_batches(args, state, loader))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any
    ) -> None:
        """Keep the Trainer from clipping: it is done when it would have been, and written down."""
        if self._recorder is not None and args.max_grad_norm is not None and args.max_grad_norm > 0:
            self._max_norm, args.max_grad_norm = args.max_grad_norm, math.inf

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any
    ) -> None:
        """Clip."""
        max_norm = self._max_norm
        self._restore(args)
        if self._recorder is not None and max_norm is not None and math.isfinite(max_norm):
            norm = torch.nn.utils.clip_grad_norm_(parts["model"].parameters(), max_norm)
            self._recorder.note_clipping(norm, max_norm)

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any
    ) -> None:
        """A micro-batch whose gradients wait for the step."""
        if self._noted is not None:
            self._batches.append(self._noted.take())

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any) -> None:
        """The optimizer took a step."""
        if self._recorder is None:
            return
        batches = [*self._batches, self._noted.take() if self._noted is not None else None]
        self._batches.clear()
        divided = None if self._scale is None else self._scale.take(len(batches))
        if any(batch is None for batch in batches):
            self._recorder.step()
        else:
            for batch in batches[:-1]:
                self._recorder.accumulate(batch)
            if divided is None:
                self._recorder.step(batches[-1])
            else:
                self._recorder.step(batches[-1], divisors=divided.divisors, items=divided.items)
        if control.should_save:
            self._recorder.flush()

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any) -> None:
        """The Trainer saves a state that it can go on from, so the steps before must be on disk."""
        if self._recorder is not None and control.should_save:
            self._recorder.flush()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any) -> None:
        """The last log of a training comes before the best model takes the place of the last."""
        if self._recorder is not None and "train_runtime" in (parts.get("logs") or {}):
            self._finish(parts.get("train_dataloader"))

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any) -> None:
        """Close the recording."""
        self._restore(args)
        if self._recorder is not None:
            self._finish(parts.get("train_dataloader"))

    def _start(
        self, args: TrainingArguments, state: TrainerState, model: nn.Module, optimizer: Any, size: int
    ) -> Recorder:
        if state.global_step and not self.path.exists():
            raise RecordingError(
                f"training resumes at step {state.global_step}, and {self.path} does not exist: give the path that the "
                "training was recorded to from its start, or do not resume"
            )
        return Recorder(
            self.path,
            model,
            optimizer,
            dataset_size=size,
            total_steps=state.max_steps if state.max_steps > 0 else None,
            checkpoints=self._checkpoints,
            grad_scaler=getattr(optimizer, "scaler", None),
            resume=state.global_step or None,
            obstacles=_obstacles(args, model),
        )

    def _finish(self, loader: Any) -> None:
        recorder, self._recorder = self._recorder, None
        self._leave(loader)
        if recorder is not None:
            recorder.close()

    def _abandon(self, args: TrainingArguments) -> None:
        """Let go of a recording whose training failed: the Trainer does not say so."""
        self._restore(args)
        recorder, self._recorder = self._recorder, None
        self._leave(None)
        if recorder is not None:
            recorder.__exit__(RecordingError, None, None)

    def _leave(self, loader: Any) -> None:
        if self._scale is not None:
            self._scale.close()
        if loader is not None:
            leave_batches(loader)
        self._scale = self._noted = None
        self._batches.clear()

    def _restore(self, args: TrainingArguments) -> None:
        if self._max_norm is not None:
            args.max_grad_norm, self._max_norm = self._max_norm, None


def _refuse(args: TrainingArguments, optimizer: Any) -> None:
    """Raise RecordingError for trainings that cannot be recorded."""
    kind = getattr(getattr(optimizer, "accelerator_state", None), "distributed_type", None)
    name = str(getattr(kind, "value", kind))
    if name in _SHARDED or args.deepspeed:
        raise RecordingError(
            f"the training keeps parameters in shards ({name}), which cannot be recorded: train on one device, or by "
            "DistributedDataParallel, whose checkpoints can be used"
        )
    if args.auto_find_batch_size:
        raise RecordingError(
            "auto_find_batch_size=True starts the training again when memory runs out, into the same recording: find the "
            "batch size first, and record with it"
        )


def _obstacles(args: TrainingArguments, model: nn.Module) -> list[str]:
    found = []
    if args.bf16 or args.fp16:
        found.append(
            f"Forward passes ran under autocast ({'bfloat16' if args.bf16 else 'float16'}), and the same steps in the "
            "precision of the parameters end elsewhere."
        )
    if args.neftune_noise_alpha:
        found.append("Noise was added to the embeddings (neftune_noise_alpha).")
    return found


def _length(loader: Any) -> int | None:
    try:
        return len(loader.dataset)
    except (AttributeError, TypeError):
        return None


def _skipped_batches(args: TrainingArguments, state: TrainerState, loader: Any) -> int:
    """Batches of the epoch in which the Trainer goes on that it passes over, as it counts them."""
    accumulated = args.gradient_accumulation_steps
    steps = max(math.ceil(len(loader) / accumulated), 1)
    return (int(state.global_step) % steps) * accumulated
