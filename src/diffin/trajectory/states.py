"""Stored states of a training: one folder each, whole or absent, without pickles.

``model.safetensors`` holds parameters and buffers under their own names, so any tool can read it;
``training.safetensors`` what is needed to go on or to replay; ``state.json`` the rest, and checksums of the two.
"""

from __future__ import annotations

import os
import re
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffin import checked, reading
from diffin.errors import RecordingError, TrajectoryError
from diffin.files import PART_SUFFIX, check_regular, read_json, sync_folder, write_json
from diffin.tensor_files import save_tensors

_MODEL = "model.safetensors"
_TRAINING = "training.safetensors"
_INDEX = "state.json"
_FOLDER = re.compile(r"[0-9]{12}")


@dataclass(frozen=True)
class Contents:
    """Everything a stored state consists of.

    Attributes:
        step: steps taken before it.
        chosen: whether the schedule chose it, rather than being the initial, final, or resumed one.
        model: parameters and buffers by name.
        optimizer: tensors of the optimizer, by ``"key:parameter"``.
        optimizer_values: its other state, by parameter and key.
        left_out: names of optimizer state that could not be stored.
        rng: states of random number generators.
        rng_values: and their numbers.
        grad_scaler: state of the gradient scaler of mixed precision.
    """

    step: int
    chosen: bool
    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    optimizer_values: Mapping[str, Mapping[str, Any]]
    left_out: list[str]
    rng: Mapping[str, Tensor]
    rng_values: Mapping[str, Any]
    grad_scaler: Mapping[str, Any] | None


def write(folder: Path, contents: Contents) -> None:
    """Store a state under ``folder``, which appears only when complete, and replaces one of the same name."""
    part = folder.with_name(folder.name + PART_SUFFIX)
    if part.exists():
        shutil.rmtree(part)
    part.mkdir(parents=True)
    try:
        training = {f"optimizer:{key}": tensor for key, tensor in contents.optimizer.items()}
        training.update({f"rng:{key}": tensor for key, tensor in contents.rng.items()})
        checksums = {_MODEL: _save(part / _MODEL, contents.model), _TRAINING: _save(part / _TRAINING, training)}
        write_json(
            part / _INDEX,
            {
                "step": contents.step,
                "chosen": contents.chosen,
                "crc32": checksums,
                "optimizer": contents.optimizer_values,
                "optimizer_left_out": contents.left_out,
                "rng": contents.rng_values,
                "grad_scaler": contents.grad_scaler,
            },
        )
        if folder.exists():
            remove(folder)
        part.rename(folder)
        sync_folder(folder.parent)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def remove(folder: Path) -> None:
    """Delete a state; it is gone from the moment this begins, whenever it is killed."""
    part = folder.with_name(folder.name + PART_SUFFIX)
    if part.exists():
        shutil.rmtree(part)
    folder.rename(part)
    shutil.rmtree(part)


def folder_name(step: int) -> str:
    return f"{step:012d}"


def stored(folder: Path) -> list[StoredState]:
    """The complete states in a folder, ascending by step; leftovers of a killed writer are ignored."""
    if not folder.is_dir():
        return []
    names = sorted(entry.name for entry in folder.iterdir() if _FOLDER.fullmatch(entry.name) and entry.is_dir())
    return [StoredState(folder / name) for name in names]


class StoredState:
    """A state on disk. Tensors are read when asked for, checked against their checksum the first time.

    Raises:
        TrajectoryError: a file of it is missing or damaged, here and in every method.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        index_path = path / _INDEX
        try:
            self._index = read_json(index_path)
            self.step = checked.whole(self._index, "step")
            self.chosen = checked.flag(self._index, "chosen")
            sums = checked.mapping(self._index, "crc32")
            self._crc32 = {name: checked.whole(sums, name) for name in (_MODEL, _TRAINING)}
            checked.values(self._index, "optimizer", checked.mapping)
            checked.each(self._index, "optimizer_left_out", checked.text)
            checked.mapping(self._index, "rng")
            checked.optional(self._index, "grad_scaler", checked.mapping)
        except (OSError, ValueError) as error:
            raise _damaged(index_path, error) from None
        if folder_name(self.step) != path.name:
            raise _damaged(index_path, f"it says step {self.step}")
        self._verified: set[str] = set()

    def set_chosen(self) -> None:
        """Make it one of those that the schedule chose."""
        write_json(self.path / _INDEX, {**self._index, "chosen": True})

    def model(self) -> dict[str, Tensor]:
        """Parameters and buffers by name, on the CPU."""
        return self._load(_MODEL)

    def optimizer(self) -> dict[str, dict[str, Any]]:
        """Optimizer state by parameter name and key, e.g. ``["fc.weight"]["exp_avg"]``."""
        state: dict[str, dict[str, Any]] = {}
        for key, tensor in self._load(_TRAINING).items():
            role, _, rest = key.partition(":")
            if role == "optimizer":
                kind, _, name = rest.partition(":")
                state.setdefault(name, {})[kind] = tensor
        for name, values in self._index["optimizer"].items():
            state.setdefault(name, {}).update(values)
        return state

    def rng(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What :func:`diffin.trajectory.randomness.restore` takes."""
        tensors = {key.removeprefix("rng:"): t for key, t in self._load(_TRAINING).items() if key.startswith("rng:")}
        return tensors, dict(self._index["rng"])

    @property
    def left_out(self) -> list[str]:
        """Names of optimizer state that could not be stored."""
        return list(self._index["optimizer_left_out"])

    @property
    def grad_scaler(self) -> dict[str, Any] | None:
        value = self._index["grad_scaler"]
        return None if value is None else dict(value)

    def _load(self, name: str) -> dict[str, Tensor]:
        path = self.path / name
        try:
            if name not in self._verified:
                if _crc32(path) != self._crc32[name]:
                    raise _damaged(path, "its checksum differs from the one in state.json")
                self._verified.add(name)
            return reading.tensors(path)
        except TrajectoryError:  # which is a ValueError
            raise
        except (OSError, ValueError) as error:
            raise _damaged(path, error) from None


def check_storable(tensors: Mapping[str, Tensor]) -> None:
    """Raise RecordingError for tensors that cannot be written down."""
    for name, tensor in tensors.items():
        if torch.nn.parameter.is_lazy(tensor):
            raise RecordingError(
                f"{name!r} has no shape yet: run one batch through the model before creating the Recorder"
            )
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type == "meta":
            raise RecordingError(
                f"{name!r} is a {tensor.layout} tensor on {tensor.device} of {tensor.dtype}, which cannot be recorded: "
                "keep parameters and buffers dense, unquantised and on a real device"
            )
        if hasattr(tensor, "full_tensor"):
            raise RecordingError(f"{name!r} is sharded over processes; record a model that each process holds whole")


def _save(path: Path, tensors: Mapping[str, Tensor]) -> int:
    save_tensors(path, tensors)
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    return _crc32(path)


def _crc32(path: Path) -> int:
    check_regular(path)
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
    return checksum


def _damaged(path: Path, reason: object) -> TrajectoryError:
    return TrajectoryError(
        f"{path} is damaged or missing ({reason}); restore it from a copy, or delete the folder {path.parent} to go on "
        "without this state"
    )
