"""The output folder of Hugging Face's ``Trainer``, finished and never recorded.

Of every ``checkpoint-<step>/`` these are read: the weights (``model.safetensors``, whole or in shards, or
``adapter_model.safetensors``), ``trainer_state.json`` (steps, logged learning rates and norms), ``optimizer.pt`` and
``scheduler.pt``, the two with ``weights_only=True``. ``training_args.bin`` is a pickle, and never opened; so what it alone
says, above all ``max_grad_norm``, has to be assumed.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from diffin.errors import TrajectoryError
from diffin.files import read_json
from diffin.trajectory.architecture import outline
from diffin.trajectory.finished import Save, Training
from diffin.trajectory.foreign import read

_log = logging.getLogger(__name__)

MAX_GRAD_NORM = 1.0
"""What the Trainer clips gradients to where nothing else is said."""

_STATE = "trainer_state.json"
_FOLDER = re.compile(r"checkpoint-([0-9]{1,12})")
_SHARD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.(safetensors|bin)")
_WEIGHTS = ("adapter_model.safetensors", "model.safetensors", "pytorch_model.bin")
_INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_MOST_BYTES = 1 << 28
_NOT_DECAYED = [re.compile(p) for p in (r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)")]


def folders(path: Path) -> list[Path]:
    """The checkpoint folders of an output folder, ascending by step, or the folder itself if it is one; else none.

    Where ``save_model`` and ``save_state`` wrote a later state into the output folder itself, that is the last.
    """
    if not path.is_dir():
        return []
    entries = [(int(match[1]), entry) for entry in path.iterdir() if (match := _FOLDER.fullmatch(entry.name))]
    found = [entry for _, entry in sorted(entries) if (entry / _STATE).is_file()]
    if (path / _STATE).is_file() and _weights(path):
        last = _step(_json(found[-1] / _STATE), found[-1]) if found else 0
        if _step(_json(path / _STATE), path) > last:
            found.append(path)
    return found


def training(found: Sequence[Path], model: nn.Module | None, max_grad_norm: float | None) -> Training:
    """What checkpoint folders say of a training.

    Args:
        found: as :func:`folders` returns them.
        model: the model that was trained, if it is at hand.
        max_grad_norm: of the ``TrainingArguments``; their default is assumed for ``None``.

    Raises:
        TrajectoryError: a file is damaged, missing, or not what the Trainer writes.
    """
    states = [_json(folder / _STATE) for folder in found]
    saves = tuple(
        Save(_step(state, folder), folder, partial(_tensors, folder), partial(_optimizer, folder))
        for folder, state in zip(found, states, strict=True)
    )
    if model is None and (found[0] / "config.json").is_file():
        model = outline(_json(found[0] / "config.json"), len(saves[0].tensors()))
    rates, norms = _logged(states[-1], found[-1], saves)
    limit = MAX_GRAD_NORM if max_grad_norm is None else max_grad_norm
    if max_grad_norm is None and any(norm > limit for norm in norms.values()):
        _log.warning(
            "%s: gradients are taken to have been clipped to max_grad_norm=%s, the Trainer's default, which cannot be seen; "
            "if it was another, pass diffin.Trajectory.open(folder, max_grad_norm=...)", found[-1].parent, limit,
        )  # fmt: skip
    return Training(
        saves, rates, norms, limit if 0 < limit < math.inf else None, model, decays=_decayed, warms_from_zero=True
    )


def _logged(state: Mapping[str, Any], folder: Path, saves: Sequence[Save]) -> tuple[dict[int, float], dict[int, float]]:
    """Learning rates and norms by the number of steps before the step that had them."""
    history = state.get("log_history", [])
    if not isinstance(history, list):
        raise TrajectoryError(f"{folder / _STATE} has a log_history that is no list: it is damaged")
    entries = [(entry, _whole(entry.get("step"))) for entry in history if isinstance(entry, Mapping)]
    logged = {step: _real(entry.get("learning_rate")) for entry, step in entries if step}
    norms = {step - 1: _real(entry.get("grad_norm")) for entry, step in entries if step}
    scheduled = {save.step: rate for save in saves if (rate := _scheduled(save.path)) is not None}
    # Older versions logged the rate of the next step, which is what the scheduler shows when a state is saved.
    older = bool(scheduled) and all(
        math.isclose(rate, logged[step] or math.nan, rel_tol=1e-9) for step, rate in scheduled.items() if step in logged
    )
    back = 0 if older and any(step in logged for step in scheduled) else 1
    rates = {step - back: rate for step, rate in logged.items() if rate is not None and rate >= 0}
    return {**rates, **scheduled}, {step: norm for step, norm in norms.items() if norm is not None and norm >= 0}


def _scheduled(folder: Path) -> float | None:
    """The learning rate of the step after a state, as its scheduler has it."""
    path = folder / "scheduler.pt"
    if not path.is_file():
        return None
    contents = read(path)
    last = contents.get("_last_lr") if isinstance(contents, Mapping) else None
    return _real(last[0]) if isinstance(last, list) and last else None


def _step(state: Mapping[str, Any], folder: Path) -> int:
    step = _whole(state.get("global_step"))
    if step is None or step < 1:
        raise TrajectoryError(f"{folder / _STATE} has global_step={state.get('global_step')!r}: it is damaged")
    return step


def _weights(folder: Path) -> Path | None:
    return next((folder / name for name in (*_WEIGHTS, *_INDICES) if (folder / name).is_file()), None)


def _tensors(folder: Path) -> dict[str, Tensor]:
    path = _weights(folder)
    if path is None:
        raise TrajectoryError(
            f"{folder} has none of {', '.join((*_WEIGHTS, *_INDICES))}: the weights are stored in a way that is not known"
        )
    files = [path]
    if path.name in _INDICES:
        index = _json(path).get("weight_map")
        names = sorted(set(map(str, index.values()))) if isinstance(index, Mapping) else []
        for name in names:
            # A name from a file must not lead out of the folder.
            if not _SHARD.fullmatch(name) or ".." in name or not (folder / name).is_file():
                raise TrajectoryError(
                    f"{path} names the file {name!r}, which is no file of weights in the same folder: it is damaged, or not "
                    "to be trusted"
                )
        files = [folder / name for name in names]
    tensors: dict[str, Tensor] = {}
    for file in files:
        contents = read(file)
        if not isinstance(contents, Mapping):
            raise TrajectoryError(f"{file} holds no tensors by name: it is damaged")
        tensors.update({str(name): tensor for name, tensor in contents.items() if isinstance(tensor, Tensor)})
    if not tensors:
        raise TrajectoryError(f"{path} holds no tensors: it is damaged")
    return tensors


def _optimizer(folder: Path) -> Mapping[str, Any] | None:
    path = folder / "optimizer.pt"
    if not path.is_file():
        return None
    contents = read(path)
    if not isinstance(contents, Mapping):
        raise TrajectoryError(f"{path} holds no state of an optimizer: it is damaged")
    return contents


def _decayed(model: nn.Module) -> list[str]:
    """The parameters that the Trainer puts into its first group, those with weight decay."""
    normalised = {
        f"{name}.{own}" if name else own
        for name, module in model.named_modules()
        if isinstance(module, nn.LayerNorm)
        for own, _ in module.named_parameters(recurse=False)
    }
    return [
        name
        for name, _ in model.named_parameters()
        if name not in normalised and not any(pattern.search(name.lower()) for pattern in _NOT_DECAYED)
    ]


def _json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"it has {path.stat().st_size} bytes")
        return read_json(path)
    except (OSError, ValueError, RecursionError) as error:
        raise TrajectoryError(f"{path} is damaged or unreadable ({error}); restore it from a copy") from None


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _real(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None
