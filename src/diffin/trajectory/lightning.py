"""Checkpoints (``.ckpt``) of Lightning's ``Trainer``, of a training that was never recorded.

They are pickles, and read with ``weights_only=True``: tensors, numbers and text, and nothing that would have to be run. What
else ``save_hyperparameters`` may have put into them makes them unreadable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from diffin.errors import TrajectoryError
from diffin.trajectory.finished import Save, Training
from diffin.trajectory.foreign import read

_SUFFIX = ".ckpt"


def files(path: Path) -> list[Path]:
    """The checkpoints of a folder (or of ``checkpoints/`` in it), or the file itself if it is one; else none."""
    if path.is_file():
        return [path] if path.suffix == _SUFFIX else []
    for folder in (path, path / "checkpoints"):
        found = sorted(folder.glob(f"*{_SUFFIX}")) if folder.is_dir() else []
        if found:
            return [file for file in found if file.is_file()]
    return []


def training(found: Sequence[Path], model: nn.Module | None, max_grad_norm: float | None) -> Training:
    """What checkpoint files say of a training.

    Args:
        found: as :func:`files` returns them.
        model: the model that was trained, or the part of the LightningModule that is studied, if it is at hand.
        max_grad_norm: ``gradient_clip_val`` of the Trainer, which files do not hold. Nor do they hold norms: it is refused.

    Raises:
        TrajectoryError: a file is damaged, holds more than tensors and numbers, or is of several optimizers.
    """
    if max_grad_norm is not None:
        raise TrajectoryError(
            f"max_grad_norm={max_grad_norm}: Lightning's checkpoints do not say how large gradients were, so clipping cannot "
            "be followed; leave it out, or record with diffin.integrations.lightning"
        )
    by_step: dict[int, Path] = {}
    for file in found:
        step = _contents(file).get("global_step")
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:
            raise TrajectoryError(f"{file} has global_step={step!r}: it is damaged, or not one of Lightning's")
        # last.ckpt is often one of the others again.
        if step and (step not in by_step or file.stem != "last"):
            by_step[step] = file
    if not by_step:
        raise TrajectoryError(f"{found[0]} was saved before the first step: pass checkpoints of a training")
    saves = tuple(
        Save(step, by_step[step], partial(_tensors, by_step[step]), partial(_optimizer, by_step[step]))
        for step in sorted(by_step)
    )
    return Training(saves, model=model)


def _contents(path: Path) -> dict[str, Any]:
    try:
        contents = read(path)
    except TrajectoryError as error:
        raise TrajectoryError(
            f"{error}. If a training of your own wrote it, leave objects out of save_hyperparameters (ignore=[...]), or keep "
            "the rest: torch.save({k: c[k] for k in ('state_dict', 'optimizer_states', 'global_step')}, path)"
        ) from None
    if not isinstance(contents, dict) or not isinstance(contents.get("state_dict"), Mapping):
        raise TrajectoryError(f"{path} has no state_dict: it is damaged, or not one of Lightning's")
    return contents


def _tensors(path: Path) -> dict[str, Tensor]:
    tensors = {str(k): v for k, v in _contents(path)["state_dict"].items() if isinstance(v, Tensor)}
    if not tensors:
        raise TrajectoryError(f"{path} holds no tensors: it is damaged")
    return tensors


def _optimizer(path: Path) -> Mapping[str, Any] | None:
    found = _contents(path).get("optimizer_states")
    if not found:  # save_weights_only
        return None
    if not isinstance(found, list) or len(found) != 1 or not isinstance(found[0], Mapping):
        raise TrajectoryError(f"{path} is of a training with several optimizers, which cannot be followed")
    return found[0]
