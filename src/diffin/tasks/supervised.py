"""What classification and regression share: taking a batch apart and calling the model on its inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diffin.batches import Batch
from diffin.errors import TaskError

TARGET_KEYS = ("labels", "label", "targets", "target")


def split(batch: Batch) -> tuple[Any, Tensor]:
    """Inputs and targets of a batch: a pair, or a mapping with one of ``TARGET_KEYS``.

    Raises:
        TaskError: the batch is neither.
    """
    if isinstance(batch, Mapping):
        for key in TARGET_KEYS:
            if key in batch:
                return {name: value for name, value in batch.items() if name != key}, batch[key]
        raise TaskError(
            f"the batch has keys {sorted(map(str, batch))} and none of {TARGET_KEYS}; rename the target's, or write a Task"
        )
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    length = f" of length {len(batch)}" if isinstance(batch, (tuple, list)) else ""
    raise TaskError(
        f"a batch must be (inputs, targets) or a mapping with a target, and is a {type(batch).__name__}{length}; "
        "if the dataset also yields indices, score the dataset without them, or write a Task"
    )


def call(model: nn.Module, inputs: Any) -> Tensor:
    """The model's output tensor: keyword arguments from a mapping, positional ones from a tuple; ``.logits`` unpacked."""
    if isinstance(inputs, Mapping):
        output = model(**inputs)
    elif isinstance(inputs, (tuple, list)):
        output = model(*inputs)
    else:
        output = model(inputs)
    if isinstance(output, Tensor):
        return output
    logits = getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    raise TaskError(
        f"the model returned {type(output).__name__}; return a tensor or something with .logits, or write a Task"
    )


def widened(output: Tensor) -> Tensor:
    """The output in float64 where the device has it.

    Finite differences subtract losses that agree in most of their digits: a loss head in float64 leaves only the
    rounding of the network itself.
    """
    return output if output.device.type == "mps" else output.to(torch.float64)
