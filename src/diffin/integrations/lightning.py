"""Recording a training of Lightning's ``Trainer``: one callback.

::

    from diffin.integrations.lightning import RecorderCallback

    trainer = lightning.Trainer(max_epochs=3, callbacks=[RecorderCallback("runs/a", model=module.net)])
    trainer.fit(module, loader)
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from diffin.batches import batch_size
from diffin.errors import MissingDependencyError, RecordingError
from diffin.integrations.batch_order import NotedBatches, leave_batches, note_batches
from diffin.trajectory import LogSpaced, Recorder
from diffin.trajectory.indices import Indices

_log = logging.getLogger(__name__)

_PLAIN = ("SingleDeviceStrategy", "DDPStrategy")


def _callback_classes() -> tuple[type, ...]:
    """``Callback`` of ``lightning`` and of ``pytorch_lightning``: the same code in two packages, and each wants its own."""
    found = []
    for name in ("lightning.pytorch", "pytorch_lightning"):
        try:
            found.append(importlib.import_module(name).Callback)
        except ImportError:
            continue
    if not found:
        raise MissingDependencyError("diffin.integrations.lightning needs lightning: pip install 'diffin[lightning]'")
    return tuple(found)


if TYPE_CHECKING:

    class _Callback: ...

else:
    _Callback = type("_Callback", _callback_classes(), {})


class RecorderCallback(_Callback):
    """Records every optimizer step of a Lightning ``Trainer`` with automatic optimization and one optimizer.

    Samples are known by their position in the dataset of the training data loader, in whatever order it draws them.

    With ``trainer.fit(ckpt_path=...)`` the recording goes on in the same folder, from the step of that checkpoint.

    Args:
        path: folder to write; must be new or empty, unless the training resumes.
        model: the module that the task will be made of, where that is a part of the LightningModule: its parameters are
            recorded under its own names. All that the optimizer updates must belong to it. The LightningModule by default;
            dropout is then repeated only if ``training_step`` calls it (``self(inputs)``).
        dataset_size: samples in the training set; its length by default.
        checkpoints: as of :class:`diffin.Recorder`.
        indices: ``batch -> positions`` of its samples in the training set, for batches that carry them
            (:class:`diffin.Indexed`): for several data loaders at once, or one that draws by itself.

    Raises:
        RecordingError: when training begins, if the run cannot be recorded.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        model: nn.Module | None = None,
        dataset_size: int | None = None,
        checkpoints: int | LogSpaced | Iterable[int] = 10,
        indices: Callable[[Any], Indices] | None = None,
    ) -> None:
        super().__init__()
        self.path = Path(path)
        self._model, self._dataset_size, self._checkpoints = model, dataset_size, checkpoints
        self._indices = indices
        self._recorder: Recorder | None = None
        self._noted: NotedBatches | None = None
        self._loader: Any = None
        self._batches: list[Any] = []
        self._steps = 0

    def setup(self, trainer: Any, pl_module: nn.Module, stage: str) -> None:
        """Before Lightning begins to read the data: have the data loader that it is going to use note its batches."""
        if stage != "fit" or self._indices is not None:
            return
        source = trainer.fit_loop._data_source
        ask = source.dataloader

        def noting() -> Any:
            self._let_go()
            self._loader = ask()
            self._noted = note_batches(self._loader)
            return self._loader

        source.dataloader = noting

    def on_train_start(self, trainer: Any, pl_module: nn.Module) -> None:
        """Begin, or go on with, the recording."""
        _refuse(trainer, pl_module)
        if trainer.global_rank != 0:
            return
        step = int(trainer.global_step)
        if step and not self.path.exists():
            raise RecordingError(
                f"training resumes at step {step}, and {self.path} does not exist: give the path that the training was "
                "recorded to from its start, or do not resume"
            )
        size = self._dataset_size if self._dataset_size is not None else _length(trainer.train_dataloader)
        if size is None:
            raise RecordingError(
                "the training set does not say how many samples it has: pass RecorderCallback(path, dataset_size=...)"
            )
        if self._noted is None and self._indices is None:
            _log.warning(
                "the samples of the batches cannot be known (a stream, or several data loaders); have batches carry them, "
                "and pass indices="
            )
        total = trainer.estimated_stepping_batches
        self._recorder = Recorder(
            self.path,
            self._model if self._model is not None else pl_module,
            trainer.optimizers[0],
            dataset_size=size,
            total_steps=int(total) if 0 < total < float("inf") else None,
            checkpoints=self._checkpoints,
            grad_scaler=getattr(trainer.precision_plugin, "scaler", None),
            resume=step or None,
            obstacles=_obstacles(trainer),
        )
        self._steps = step
        self._batches.clear()

    def on_before_optimizer_step(self, trainer: Any, pl_module: nn.Module, optimizer: Any) -> None:
        """Gradients are complete, and Lightning is about to clip them."""
        limit = trainer.gradient_clip_val
        if self._recorder is None or not limit:
            return
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        self._recorder.note_clipping(norm, float(limit))

    def on_train_batch_end(self, trainer: Any, pl_module: nn.Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Gradients wait, or the optimizer took a step."""
        if self._recorder is None:
            return
        self._batches.append(self._samples(batch))
        if trainer.global_step == self._steps:
            return
        self._steps = int(trainer.global_step)
        batches, self._batches = self._batches, []
        if any(part is None for part in batches):
            self._recorder.step()
            return
        for part in batches[:-1]:
            self._recorder.accumulate(part)
        # Lightning divides by the number of micro-batches that it was asked for, also where an epoch ends with fewer.
        parts = trainer.accumulate_grad_batches
        self._recorder.step(batches[-1], divisors=[float(len(part) * parts) for part in batches])

    def on_save_checkpoint(self, trainer: Any, pl_module: nn.Module, checkpoint: dict[str, Any]) -> None:
        """Lightning saves a state that it can go on from, so the steps before must be on disk."""
        if self._recorder is not None:
            self._recorder.flush()

    def on_train_end(self, trainer: Any, pl_module: nn.Module) -> None:
        """Close the recording."""
        recorder, self._recorder = self._recorder, None
        self._let_go()
        if recorder is not None:
            recorder.close()

    def on_exception(self, trainer: Any, pl_module: nn.Module, exception: BaseException) -> None:
        """Keep what is known, claim nothing."""
        recorder, self._recorder = self._recorder, None
        self._let_go()
        if recorder is not None:
            recorder.__exit__(type(exception), exception, None)

    def _samples(self, batch: Any) -> Any:
        if self._indices is not None:
            return torch.as_tensor(self._indices(batch)).reshape(-1)
        samples = None if self._noted is None else self._noted.take()
        if samples is None:
            return None
        size = batch_size(batch)
        if size != len(samples):
            raise RecordingError(
                f"the batch has {size} samples where the data loader drew {len(samples)}: have batches carry the positions "
                "of their samples, and pass RecorderCallback(path, indices=...)"
            )
        return samples

    def _let_go(self) -> None:
        if self._loader is not None:
            leave_batches(self._loader)
        self._loader = self._noted = None


def _refuse(trainer: Any, module: Any) -> None:
    """Raise RecordingError for trainings that cannot be recorded."""
    if not module.automatic_optimization or len(trainer.optimizers) != 1:
        raise RecordingError(
            "the callback records trainings with automatic optimization and one optimizer; with others, call a "
            "diffin.Recorder in training_step, after each optimizer.step()"
        )
    strategy = type(trainer.strategy).__name__
    if strategy not in _PLAIN:
        raise RecordingError(
            f"the strategy {strategy} cannot be recorded: train on one device, or with DDPStrategy, whose checkpoints can be "
            "used"
        )
    if str(trainer.gradient_clip_algorithm or "norm").lower().endswith("value") and trainer.gradient_clip_val:
        raise RecordingError("clipping by value cannot be recorded: pass gradient_clip_algorithm='norm'")
    if getattr(type(module), "configure_gradient_clipping", None) is not _unclipped(module):
        raise RecordingError(
            "the module overrides configure_gradient_clipping, so that it is unknown how gradients are clipped: pass "
            "gradient_clip_val to the Trainer instead"
        )


def _unclipped(module: Any) -> Any:
    """The hook of the LightningModule that clips as the Trainer is told."""
    base: Any = next(kind for kind in type(module).mro() if kind.__name__ == "LightningModule")
    return base.configure_gradient_clipping


def _obstacles(trainer: Any) -> list[str]:
    if "mixed" not in str(trainer.precision):
        return []
    return [
        f"Forward passes ran under autocast ({trainer.precision}), and the same steps in the precision of the parameters end "
        "elsewhere."
    ]


def _length(loader: Any) -> int | None:
    try:
        return len(loader.dataset)
    except (AttributeError, TypeError):
        return None
