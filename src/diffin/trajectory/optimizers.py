"""What an optimizer is, as far as its update formula goes: its kind, its constants, its buffers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from diffin import checked
from diffin.errors import RecordingError

Constants = dict[str, Any]
"""The constants of one parameter group, the learning rate apart: numbers, booleans, or lists of numbers."""

_ADAM = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "amsgrad": False, "maximize": False}
_KNOWN: dict[type[Optimizer], dict[str, Any]] = {
    torch.optim.SGD: {"momentum": 0.0, "dampening": 0.0, "nesterov": False, "weight_decay": 0.0, "maximize": False},
    torch.optim.Adam: {**_ADAM, "decoupled_weight_decay": False},
    torch.optim.AdamW: {**_ADAM, "decoupled_weight_decay": True},
}


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share constants.

    Attributes:
        names: the parameters, as ``model.named_parameters()`` calls them.
        constants: e.g. ``momentum`` or ``betas`` at the first step; :meth:`StepLog.constants` has those of each step.
    """

    names: tuple[str, ...]
    constants: Constants


@dataclass(frozen=True)
class OptimizerDescription:
    """The optimizer of a training.

    Attributes:
        kind: its class, e.g. ``"SGD"``, ``"Adam"`` or ``"AdamW"``.
        supported: whether its update formula is known to diffin; never true for subclasses, which may do anything.
        groups: its parameter groups, in its order.
    """

    kind: str
    supported: bool
    groups: tuple[ParameterGroup, ...]

    @property
    def is_plain_sgd(self) -> bool:
        """Whether a step is ``theta - lr * gradient`` and nothing else."""
        return self.kind == "SGD" and self.supported and not any(any(group.constants.values()) for group in self.groups)

    @property
    def summary(self) -> str:
        """For a person, e.g. ``SGD (momentum=0.9, weight_decay=0.0005)``; constants that are off are left out."""
        shown: dict[str, list[Any]] = {}
        for group in self.groups:
            for key, value in group.constants.items():
                if value and value not in shown.setdefault(key, []):
                    shown[key].append(value)
        settings = [f"{key}={' or '.join(map(str, values))}" for key, values in shown.items() if values]
        return f"{self.kind} ({', '.join(settings)})" if settings else self.kind

    def to_json(self) -> dict[str, Any]:
        groups = [{"names": list(group.names), "constants": group.constants} for group in self.groups]
        return {"kind": self.kind, "supported": self.supported, "groups": groups}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> OptimizerDescription:
        """Read what :meth:`to_json` gave.

        Raises:
            ValueError: an entry is missing, or of another type.
        """
        groups = tuple(
            ParameterGroup(checked.each(group, "names", checked.text), checked.mapping(group, "constants"))
            for group in checked.each(value, "groups", checked.mapping)
        )
        return OptimizerDescription(checked.text(value, "kind"), checked.flag(value, "supported"), groups)


def describe(optimizer: Optimizer, names: Mapping[nn.Parameter, str]) -> OptimizerDescription:
    """Describe an optimizer over the named parameters.

    Raises:
        RecordingError: it updates a tensor that has no name.
    """
    groups = []
    for position, group in enumerate(optimizer.param_groups):
        strangers = [p for p in group["params"] if p not in names]
        if strangers:
            raise RecordingError(
                f"parameter group {position} of the optimizer has {len(strangers)} tensors that are not parameters "
                f"of the model, the first of shape {tuple(strangers[0].shape)}: pass the module that contains "
                "everything being trained (combine several in an nn.ModuleDict), and build the optimizer after "
                "moving or wrapping the model"
            )
        constants = GroupReader(optimizer).constants()[position]
        groups.append(ParameterGroup(tuple(names[p] for p in group["params"]), constants))
    return OptimizerDescription(type(optimizer).__name__, type(optimizer) in _KNOWN, tuple(groups))


_BESIDE = {"params", "lr", "initial_lr", "foreach", "fused", "capturable", "differentiable"}


def of_saved_groups(groups: Sequence[Mapping[str, Any]], *, decoupled: bool) -> tuple[str, bool, list[Constants]]:
    """What the parameter groups of a saved state dict say of the optimizer, which has no name there.

    Args:
        groups: its ``param_groups``.
        decoupled: whether what looks like Adam is AdamW, where an older version of PyTorch did not write it down.

    Returns:
        Its kind, whether its update formula is known, and the constants of each group.

    Raises:
        ValueError: a constant is no number.
    """
    constants: list[Constants] = []
    kinds: set[type[Optimizer] | None] = set()
    for group in groups:
        adam = "betas" in group and "amsgrad" in group
        beside = bool(group.get("decoupled_weight_decay", decoupled)) if adam else False
        kind: type[Optimizer] | None = torch.optim.SGD if "nesterov" in group else None
        kind = (torch.optim.AdamW if beside else torch.optim.Adam) if adam else kind
        known = _KNOWN.get(kind, {}) if kind is not None else {}
        if not set(group) <= set(known) | _BESIDE:
            kind = None
        values = {key: plain(value) for key, value in group.items() if key not in _BESIDE}
        constants.append({"weight_decay": 0.0, "maximize": False, **known, **values})
        for key, default in known.items():
            pair = list(default) if isinstance(default, tuple) else [default]
            given = constants[-1][key] if isinstance(default, tuple) else [constants[-1][key]]
            numbers = isinstance(given, (list, tuple)) and all(isinstance(value, (bool, int, float)) for value in given)
            if not numbers or len(given) != len(pair):
                raise ValueError(f"{key}={constants[-1][key]!r}")
        if adam:
            constants[-1]["decoupled_weight_decay"] = beside
        kinds.add(kind)
    found = kinds.pop() if len(kinds) == 1 else None
    return ("an unknown optimizer", False, constants) if found is None else (found.__name__, True, constants)


class GroupReader:
    """Reads learning rates and constants of an optimizer, fast enough for every step.

    ``snapshot`` and ``rates`` copy without waiting for an accelerator; ``plain`` turns the copies into numbers later.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        known = _KNOWN.get(type(optimizer))
        if known is None:
            self._defaults = {
                key: None
                for group in optimizer.param_groups
                for key, value in group.items()
                if _is_constant(key, value)
            }
        else:
            self._defaults = known
        self._count = len(optimizer.param_groups)

    def rates(self) -> tuple[Any, ...]:
        return tuple([_copy(group.get("lr")) for group in self._optimizer.param_groups])

    def snapshot(self) -> tuple[Any, ...]:
        return tuple(
            [
                _copy(group.get(key, default))
                for group in self._optimizer.param_groups
                for key, default in self._defaults.items()
            ]
        )

    def plain(self, snapshot: tuple[Any, ...]) -> list[Constants]:
        values = [plain(value) for value in snapshot]
        width = len(self._defaults)
        groups = len(self._optimizer.param_groups)
        return [dict(zip(self._defaults, values[i * width : (i + 1) * width], strict=True)) for i in range(groups)]

    def constants(self) -> list[Constants]:
        return self.plain(self.snapshot())

    def check_unchanged(self) -> None:
        """Raise RecordingError if groups were added to the optimizer, or removed from it."""
        if len(self._optimizer.param_groups) != self._count:
            raise RecordingError(
                "the parameter groups of the optimizer changed during the recording: create the Recorder after "
                "add_param_group (give groups that start frozen a learning rate of 0 until then), or record each phase "
                "of the training into a path of its own"
            )


def plain(value: Any) -> Any:
    """A JSON value for a constant."""
    if isinstance(value, Tensor):
        value = value.item() if value.numel() == 1 else value.tolist()
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    return value


def rate(value: Any) -> float:
    """A learning rate as a number; NaN for an optimizer that has none."""
    return math.nan if value is None else float(value)


def buffers(
    optimizer: Optimizer, names: Mapping[nn.Parameter, str]
) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]], list[str]]:
    """The state of an optimizer, e.g. ``momentum_buffer``.

    Returns:
        Tensors by ``"key:parameter"``, other values by parameter and key, and the keys of what neither can hold.
    """
    tensors: dict[str, Tensor] = {}
    values: dict[str, dict[str, Any]] = {}
    left_out: set[str] = set()
    for parameter, name in names.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor) and value.layout == torch.strided:
                tensors[f"{key}:{name}"] = value
            elif value is None or isinstance(value, (bool, int, float, str)):
                values.setdefault(name, {})[key] = value
            else:
                left_out.add(str(key))
    return tensors, values, sorted(left_out)


def restore_buffers(
    optimizer: Optimizer, names: Mapping[nn.Parameter, str], state: Mapping[str, Mapping[str, Any]]
) -> None:
    """Put stored state back. Learning rates and constants stay what the caller set them to."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    packed = {i: dict(state[names[p]]) for i, p in enumerate(parameters) if names[p] in state}
    optimizer.load_state_dict({"state": packed, "param_groups": optimizer.state_dict()["param_groups"]})


def _copy(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.item() if value.device.type == "cpu" and value.numel() == 1 else value.detach().clone()


def _is_constant(key: str, value: Any) -> bool:
    if key in ("params", "lr", "initial_lr"):
        return False
    return isinstance(value, (bool, int, float, str)) or (
        isinstance(value, (tuple, list)) and all(isinstance(item, (bool, int, float)) for item in value)
    )
