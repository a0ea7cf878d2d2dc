"""What a task is: a model, and the loss of each sample of a batch.

Everything that diffin does to a model happens through :class:`PerSampleLoss`, the losses as a function of the
parameters. It substitutes parameters for the time of one call, so the model of the user is never written to.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from diffin import vectors
from diffin.batches import Batch, to_device
from diffin.errors import TaskError, TrajectoryError
from diffin.vectors import Vector


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel, DataParallel and torch.compile."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def is_compiled(model: nn.Module) -> bool:
    """Whether ``torch.compile`` wraps the module, or what a data-parallel wrapper holds."""
    if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        model = model.module
    inner = getattr(model, "_orig_mod", None)
    return isinstance(inner, nn.Module) or getattr(model, "_compiled_call_impl", None) is not None


@dataclass(frozen=True)
class Outcome:
    """What a model made of a batch: the loss of every sample, and what the batch loses without it.

    This one is of losses that each depend on their own sample only; a loss that is coupled has one of its own.

    Attributes:
        losses: Float[Tensor, "B"]; their mean is the training objective of the batch.
    """

    losses: Tensor

    def weighted(self, weights: Tensor) -> Tensor:
        """B times the objective of the batch if every sample counted as often as its weight says. Float[Tensor, ""].

        With weights of 1 it is the sum of the losses. A sample of weight 0 is not there: not with its own loss, and not in
        the losses of others. The divisor of the objective stays B.

        Args:
            weights: Float[Tensor, "B"].
        """
        return (self.losses * weights.to(self.losses.dtype)).sum()

    def effects(self) -> Tensor:
        """The derivative of :meth:`weighted` with respect to every weight, at weights of 1. Float[Tensor, "B"]."""
        return self.losses


class Task(ABC):
    """A model and the loss that it was trained with, one value per sample.

    Subclass it and write :meth:`losses`, or pass a function to :class:`diffin.tasks.FunctionTask`.

    A loss is *coupled* if it depends on the other samples of the batch, as contrastive losses do. Its task sets
    ``group_size`` and writes :meth:`outcome`; see :class:`diffin.tasks.Contrastive`.

    Args:
        model: the module whose parameters are studied; a wrapper of ``torch.compile`` or of data-parallel training is
            taken off. Whatever calls it inside :meth:`losses` must go through ``self.model``.

    Attributes:
        group_size: how many samples have their coupled losses taken together; ``None`` for a loss that is not coupled.
        group_seed: draws which samples are taken together when a dataset is scored.
        autocast: what the model computes in inside :meth:`losses`, where that is less than its parameters are stored in.
    """

    group_size: int | None = None
    group_seed: int = 0
    autocast: torch.dtype | None = None

    def __init__(self, model: nn.Module) -> None:
        self.model = unwrapped(model)

    @abstractmethod
    def losses(self, batch: Batch) -> Tensor:
        """The training loss of every sample, unreduced.

        Args:
            batch: what the collate function made of B samples, on the model's device.

        Returns:
            Float[Tensor, "B"]; the mean is the training objective. Without a ``group_size``, a sample's loss must not
            depend on the other samples of the batch.
        """

    def outcome(self, batch: Batch) -> Outcome:
        """The losses, and what else follows from one call of the model; a coupled task overrides it."""
        return Outcome(self.losses(batch))

    def weighted(self, batch: Batch, weights: Tensor) -> Tensor:
        """See :meth:`Outcome.weighted`."""
        return self.outcome(batch).weighted(weights)

    def effects(self, batch: Batch) -> Tensor:
        """See :meth:`Outcome.effects`."""
        return self.outcome(batch).effects()

    def predictions(self, batch: Batch) -> list[str] | None:
        """What the model says of each sample, in words for a person; ``None`` if there is nothing to show."""
        return None

    def labels(self, batch: Batch) -> list[str] | None:
        """What the data says of each sample, in words for a person; ``None`` if there is nothing to show."""
        return None

    @property
    def boundary(self) -> nn.Module:
        """The module whose output is all that the losses see of the parameters: the model, unless a task knows better."""
        return self.model

    @property
    def device(self) -> torch.device:
        for tensor in self.model.parameters():
            return tensor.device
        raise TaskError("the model of the task has no parameters; there is nothing that training could have changed")


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode with normalisation statistics that stay as they are.

    On leaving, however that happens, every module has the mode it had, and every buffer and computed tensor its values.
    """
    with _kept(model):
        model.eval()
        yield


@contextmanager
def in_full_precision(task: Task) -> Iterator[None]:
    """Without autocast, where the task says that it uses it."""
    kept = task.autocast
    task.autocast = None
    try:
        yield
    finally:
        task.autocast = kept


@contextmanager
def as_trained(model: nn.Module) -> Iterator[None]:
    """Training mode, all of the model; on leaving, everything is as :func:`frozen` leaves it."""
    with _kept(model):
        model.train()
        yield


@contextmanager
def _kept(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    # Hooks such as weight_norm's leave what they compute from the parameters as plain attributes.
    computed = [
        (module, name, value)
        for module in model.modules()
        for name, value in vars(module).items()
        if isinstance(value, Tensor)
    ]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for module, name, value in computed:
            setattr(module, name, value)
        with torch.no_grad():
            for buffer, saved in buffers:
                # Only what changed is written: an untouched buffer keeps its autograd version.
                if not torch.equal(buffer, saved):
                    buffer.copy_(saved)


class _LossModule(nn.Module):
    """A module around task and model, so that ``functional_call`` can substitute parameters under any task."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.model = task.model
        self._task = task

    def forward(self, batch: Batch) -> Outcome:
        return self._task.outcome(batch)


class PerSampleLoss:
    """The losses of a batch as a function of chosen parameters, at a fixed state of the rest of the model.

    Use it inside :func:`frozen`. The model itself is only read.

    Args:
        task: model and loss.
        state: tensors of the model by name, as in ``model.state_dict()``: every parameter, and those buffers that shall
            not be taken from the model. ``None`` for the model as it is.
        parameters: shell-style name patterns of the trainable parameters to study; ``None`` for all of them.

    Attributes:
        parameters: the studied parameters at ``state``, detached, on the model's device.
        rest: every other parameter and buffer there.
        device: where batches are moved before the loss is taken.

    Raises:
        TrajectoryError: ``state`` lacks a parameter, or has a tensor that the model does not have, or one of another shape.
        TaskError: the model has nothing to study, or rewrites its parameters when it is called.
    """

    def __init__(
        self, task: Task, state: Mapping[str, Tensor] | None = None, parameters: Sequence[str] | str | None = None
    ) -> None:
        self.task = task
        self.device = task.device
        own: dict[str, Tensor] = dict(task.model.named_parameters())
        if any(hasattr(p, "full_tensor") for p in own.values()):
            raise TaskError(
                "the parameters of the model are sharded (FSDP, or another DTensor), and no other values can be put in their "
                "place; build the task with a model of its own that is not wrapped"
            )
        buffers = dict(task.model.named_buffers())
        state = _matched(task.model, own, buffers, state or {})
        trainable = [name for name, p in own.items() if p.requires_grad]
        if not trainable:
            raise TaskError("no parameter of the task's model requires a gradient, so training changed nothing")
        chosen = set(vectors.matching(trainable, parameters))
        everything = {
            name: state.get(name, tensor).detach().to(device=tensor.device, dtype=tensor.dtype)
            for name, tensor in {**own, **buffers}.items()
        }
        self.parameters: Vector = {name: everything[name] for name in trainable if name in chosen}
        # Buffers are copied: a module that writes to one in evaluation mode must not change the caller's state.
        self.rest = {
            name: tensor.clone() if name in buffers else tensor
            for name, tensor in everything.items()
            if name not in self.parameters
        }
        for module in task.model.modules():
            if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.max_norm is not None:
                raise TaskError(
                    "an embedding of the model has max_norm, so it rewrites its weight whenever it is called, and no loss "
                    "is a function of the parameters; set its max_norm to None"
                )
        self._module = _LossModule(task)

    @property
    def names(self) -> list[str]:
        """The names of the studied parameters."""
        return list(self.parameters)

    def __call__(self, parameters: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Losses of ``batch`` (already on the device) at ``parameters``. Float[Tensor, "B"]."""
        return self.outcome(parameters, batch).losses

    def outcome(self, parameters: Mapping[str, Tensor], batch: Batch) -> Outcome:
        """The losses of ``batch`` (already on the device) at ``parameters``, and the effects, by one call of the model."""
        tensors = {f"model.{name}": tensor for name, tensor in (*self.rest.items(), *parameters.items())}
        outcome: Outcome = functional_call(self._module, tensors, (batch,), tie_weights=True)
        return outcome

    def to_device(self, batch: Batch) -> Batch:
        return to_device(batch, self.device)


def _matched(
    model: nn.Module, own: Mapping[str, Tensor], buffers: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The state under the names that ``named_parameters`` uses, shapes checked."""
    known = {**own, **buffers}
    canonical = {id(tensor): name for name, tensor in known.items()}
    aliases = {
        alias: canonical[id(tensor)]
        for alias, tensor in (
            *model.named_parameters(remove_duplicate=False),
            *model.named_buffers(remove_duplicate=False),
        )
    }
    matched: dict[str, Tensor] = {}
    for name, tensor in state.items():
        target = aliases.get(name)
        if target is None:
            raise TrajectoryError(
                f"the checkpoint has a tensor {name!r} that the model of the task lacks; the model has "
                f"{', '.join(list(known)[:3])} and {max(0, len(known) - 3)} more: "
                "build the task with the model that was trained"
            )
        if tensor.shape != known[target].shape:
            raise TrajectoryError(
                f"{name!r} has shape {tuple(tensor.shape)} in the checkpoint and {tuple(known[target].shape)} in the model: "
                "build the task with the model that was trained"
            )
        matched[target] = tensor
    missing = [name for name in own if name not in matched]
    if state and missing:
        raise TrajectoryError(
            f"the checkpoint lacks {len(missing)} of the model's {len(own)} parameters, {missing[0]!r} first: "
            "build the task with the model that was trained"
        )
    return matched


def refuse_coupled(task: Task, what: str) -> None:
    """Raise where samples would be told apart by their own losses, and those are coupled.

    Raises:
        TaskError: naming ``what`` takes samples by themselves.
    """
    if getattr(task, "group_size", None) is not None:
        raise TaskError(
            f"{what} takes every sample by itself, and the losses of {type(task).__name__} are coupled, so that a sample is "
            "in the losses of others; what is known for them is diffin.score with a query, by derivatives='difference' or "
            "'forward'"
        )
