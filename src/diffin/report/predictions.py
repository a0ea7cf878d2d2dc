"""What the data and the final model say of a few samples, in words."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from diffin.batches import Batch, to_device
from diffin.problem import Problem
from diffin.report.reading import read_batches
from diffin.task import PerSampleLoss, Task, frozen

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Said:
    """What data and model say of one sample; ``None`` where there is nothing to say."""

    label: str | None = None
    prediction: str | None = None


def describe(
    problem: Problem, indices: Sequence[int], state: Mapping[str, Tensor] | None
) -> tuple[dict[int, Said], str]:
    """Ask the task for the labels and predictions of a few training samples.

    The model is only read: ``state`` is substituted for the time of the calls. Without ``state`` there are labels and
    no predictions, since the model of a freshly loaded problem need not be the trained one. A task that fails here
    costs the page its labels and predictions, not the page itself: the reason is logged and shown.

    Args:
        problem: task, training data and collate function.
        indices: into the training data.
        state: parameters and buffers of the final model, by name.

    Returns:
        What is said, by index; and a sentence on why nothing is, or an empty one.

    Raises:
        TrajectoryError: ``state`` does not fit the model.
    """
    task = problem.task
    describer = _Describer(task, predict=state is not None)
    tensors = _substitution(task, state)
    said: dict[int, Said] = {}
    with frozen(task.model), torch.no_grad():
        try:
            for part, batch in read_batches(problem.train, indices, problem.collate):
                batch = to_device(batch, task.device)
                labels, predictions = functional_call(describer, tensors, (batch,), tie_weights=True)
                pairs = zip(_checked(labels, len(part)), _checked(predictions, len(part)), strict=True)
                said.update(zip(part, (Said(*pair) for pair in pairs), strict=True))
        except Exception as error:
            # Whatever the user's collate function or task may raise: the scores are worth showing without it.
            logger.warning("labels and predictions are left out of the report: %s: %s", type(error).__name__, error)
            return {}, f"Labels and predictions could not be taken: {type(error).__name__}: {error}"
    return said, ""


class _Describer(nn.Module):
    """A module around task and model, so that ``functional_call`` can substitute the final parameters."""

    def __init__(self, task: Task, predict: bool) -> None:
        super().__init__()
        self.model = task.model
        self._task = task
        self._predict = predict

    def forward(self, batch: Batch) -> tuple[list[str] | None, list[str] | None]:
        return self._task.labels(batch), self._task.predictions(batch) if self._predict else None


def _substitution(task: Task, state: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    if state is None:
        return {}
    PerSampleLoss(task, state)  # refuses a state of another model with a sentence
    model = task.model
    canonical = {id(tensor): (name, tensor) for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    aliases = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    # Copies: a module that writes to a buffer in evaluation mode must not change the caller's state. A tied weight, of
    # which the state holds a tensor a name, is given once, as functional_call asks.
    tensors = {}
    for alias, tensor in aliases:
        name, own = canonical[id(tensor)]
        if alias in state:
            tensors[f"model.{name}"] = state[alias].detach().to(device=own.device, dtype=own.dtype, copy=True)
    return tensors


def _checked(words: list[str] | None, size: int) -> list[str | None]:
    if words is None:
        return [None] * size
    if len(words) != size:
        raise ValueError(f"the task gave {len(words)} descriptions of {size} samples; return one string each")
    return [str(word) for word in words]
