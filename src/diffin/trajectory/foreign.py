"""Checkpoints that something else wrote: ``.pt`` files, read without running what is in them, and ``.safetensors``."""

from __future__ import annotations

import math
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffin import reading
from diffin.errors import TrajectoryError
from diffin.files import check_regular
from diffin.trajectory.checkpoints import Checkpoint

_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")
_LARGE = 1 << 28
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class ForeignState:
    """The state dict in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def model(self) -> dict[str, Tensor]:
        """Its tensors by name, on the CPU.

        Raises:
            TrajectoryError: the file cannot be read, safely, as a state dict.
        """
        if not self.path.is_file():
            raise TrajectoryError(
                f"{self.path} is not a file: pass the paths of existing .pt, .pth or .safetensors files"
            )
        contents = read(self.path)
        for key in _WRAPPERS:
            if isinstance(contents, Mapping) and isinstance(contents.get(key), Mapping):
                contents = contents[key]
                break
        tensors = (
            {str(k): v for k, v in contents.items() if isinstance(v, Tensor)} if isinstance(contents, Mapping) else {}
        )
        if not tensors:
            raise TrajectoryError(
                f"{self.path} holds no tensors by name: save model.state_dict(), alone or under one of the keys "
                f"{', '.join(map(repr, _WRAPPERS))}"
            )
        refuse_absurd(self.path, tensors)
        return without_prefixes(tensors)

    def optimizer(self) -> dict[str, dict[str, Any]]:
        raise TrajectoryError(
            f"{self.path} is a foreign checkpoint, of which only the model is read: record with diffin.Recorder"
        )

    def rng(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        raise TrajectoryError(
            f"{self.path} is a foreign checkpoint, of which only the model is read: record with diffin.Recorder"
        )


def checkpoints(
    paths: Sequence[str | Path], steps: Sequence[int], learning_rates: Sequence[float]
) -> tuple[Checkpoint, ...]:
    """Checkpoints of foreign files, each looked at once.

    Raises:
        TrajectoryError: lengths differ, steps do not ascend, rates are not positive, or a file does not fit the others.
    """
    if isinstance(paths, (str, Path)) or isinstance(steps, (int, float)) or isinstance(learning_rates, (int, float)):
        raise TrajectoryError(
            "paths, steps and learning_rates are sequences with one entry for each checkpoint: pass lists, e.g. "
            "learning_rates=[0.1] * len(paths)"
        )
    if not len(paths) == len(steps) == len(learning_rates):
        raise TrajectoryError(
            f"paths, steps and learning_rates have lengths {len(paths)}, {len(steps)} and {len(learning_rates)}: "
            "give one step (steps taken before) and one learning rate (of the next step) for each file"
        )
    if not paths:
        raise TrajectoryError("paths is empty: pass at least one checkpoint file")
    _check_steps(steps)
    for rate in learning_rates:
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not math.isfinite(rate) or rate <= 0:
            raise TrajectoryError(
                f"learning_rates contains {rate!r}: pass the positive learning rate of the step after each checkpoint"
            )
    sources = [ForeignState(Path(path)) for path in paths]
    shapes = parameter_shapes(sources[0].model())
    result = tuple(
        Checkpoint(int(step), (float(rate),), source, None, shapes)
        for step, rate, source in zip(steps, learning_rates, sources, strict=True)
    )
    for checkpoint in result[1:]:
        names = set(parameter_shapes(checkpoint.state))
        if names != set(shapes):
            stranger = sorted(names - set(shapes))[0]
            raise TrajectoryError(
                f"{checkpoint.path} has a tensor {stranger!r} that {paths[0]} lacks: it belongs to another model"
            )
    return result


def _check_steps(steps: Sequence[int]) -> None:
    for step in steps:
        if isinstance(step, bool) or not hasattr(step, "__index__") or step < 0:
            raise TrajectoryError(
                f"steps contains {step!r}: pass how many optimizer steps were taken before each checkpoint"
            )
    for before, after in pairwise(steps):
        if after <= before:
            raise TrajectoryError(
                f"steps must ascend, but {before} is followed by {after}: sort paths, steps and rates together"
            )


def parameter_shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(tensor.shape)
        for name, tensor in state.items()
        if tensor.is_floating_point() and not name.endswith(_STATISTICS)
    }


def without_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names without what DistributedDataParallel and torch.compile put before all of them."""
    while prefix := next((p for p in _PREFIXES if all(name.startswith(p) for name in tensors)), None):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def refuse_absurd(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise TrajectoryError for tensors that claim more than the file holds: a stride of zero makes any size of nothing."""
    for name, tensor in tensors.items():
        claimed = tensor.numel() * tensor.element_size()
        if (
            tensor.layout != torch.strided
            or tensor.device.type != "cpu"
            or (claimed > _LARGE and claimed > tensor.untyped_storage().nbytes())
        ):
            raise TrajectoryError(
                f"{path} has {name!r} of shape {tuple(tensor.shape)}, which is more than it holds: the file is not one "
                "that a training saved"
            )


def read(path: Path) -> Any:
    """What a file of tensors holds; nothing in it is run.

    Raises:
        TrajectoryError: it is damaged, or holds what only running it would tell.
    """
    try:
        check_regular(path)
        if path.suffix == ".safetensors":
            return reading.tensors(path)
        _refuse_compressed(path)
        # Only zip archives, the format since PyTorch 1.6, can be mapped instead of read.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise TrajectoryError(
            f"{path} cannot be read with weights_only=True, the only safe way ({_first_line(error)}): it is "
            "damaged, or holds more than tensors, and reading that could run any code. If you trust it, save its "
            "tensors alone: torch.save(model.state_dict(), ...), or as .safetensors"
        ) from None
    except Exception as error:  # reading a pickle can fail in any way, and takes what memory the file says
        raise TrajectoryError(
            f"{path} is damaged, truncated, or not a checkpoint ({_first_line(error)}); pass .pt or .pth files "
            "written by torch.save, or .safetensors"
        ) from None


def _refuse_compressed(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            # torch.save never compresses, and what is small on disk need not be in memory.
            raise ValueError("it is compressed")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
