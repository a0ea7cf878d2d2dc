"""Forward passes over the states of a training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from diffin.batches import Batch, to_device
from diffin.errors import TaskError, TrajectoryError
from diffin.memory import from_sample_bytes
from diffin.progress import Phase, phase
from diffin.sample import Sample
from diffin.scoring.batching import from_free_memory
from diffin.signals.signals import Signals, Singles
from diffin.sources import Collate, Indices, Source, open_source
from diffin.task import PerSampleLoss, Task, frozen
from diffin.tasks import Classification
from diffin.tasks.supervised import call, split, widened
from diffin.trajectory import Trajectory
from diffin.trajectory.checkpoints import Checkpoint

_EARLY = 0.3
"""Where in the training the early features are taken, as a share of its steps."""
_WIDEST = 256
"""Features that are kept of every state; more are projected."""


def observe(
    task: Task,
    trajectory: Trajectory,
    dataset: Any,
    *,
    batch_size: Literal["auto"] | int = "auto",
    collate: Collate | None = None,
    workers: int = 0,
    progress: bool = True,
    hidden: bool = False,
) -> Signals:
    """What a classifier said of every sample at the checkpoints of its training and at its end.

    One forward pass a sample and state; the state before the first step is left out, since it knows nothing of the data.

    Args:
        task: a :class:`diffin.tasks.Classification`; the model is read, never written.
        trajectory: what training left behind. Foreign checkpoints have no final state: the last one stands for it.
        dataset: the samples, those of the training or others: anything :func:`diffin.sources.open_source` reads.
        batch_size: samples a pass; ``"auto"`` to choose it.
        collate: makes a batch of a list of samples; ``None`` for the default.
        workers: processes that read the data.
        progress: show the time left.
        hidden: also keep the features of every state and of the one before the first step, at most 256 numbers a sample
            and state.

    Raises:
        TaskError: the task is not a classification, or the targets are not class numbers.
        TrajectoryError: the trajectory has no state after its first step, or belongs to another model.
        DatasetError: the dataset is empty or changed its length while it was read.
    """
    if not isinstance(task, Classification):
        raise TaskError(
            f"signals are of a classifier, and the task is a {type(task).__name__}; pass a diffin.tasks.Classification"
        )
    states = _states(trajectory)
    untrained = [trajectory.initial] if hidden and trajectory.initial is not None else []
    source = open_source(dataset, collate=collate, workers=workers)
    early = min(range(len(states)), key=lambda i: abs(states[i].step - _EARLY * states[-1].step))
    total = None if source.length is None else source.length * len([*untrained, *states])
    seen: list[_State] = []
    kept: dict[int, Singles] = {}
    with phase("observing", total, show=progress) as shown:
        for number, checkpoint in enumerate([*untrained, *states], start=-len(untrained)):
            observer = _Observer(task, checkpoint.state)
            size = _batch_size(observer, source) if batch_size == "auto" else batch_size
            wanted = hidden or number in (early, len(states) - 1)
            state = _observed(observer, source, size, wanted, shown)
            if hidden:
                kept[checkpoint.step] = _narrowed(state.logits if state.features is None else state.features)
            if number >= 0:
                ends = number in (early, len(states) - 1)
                seen.append(replace(state, logits=None, features=state.features if ends else None))
    first, last = seen[0], seen[-1]
    if any(not np.array_equal(first.index, state.index) for state in seen):
        raise TrajectoryError(
            "the dataset gave other samples when it was read again; pass one that gives the same ones"
        )
    return Signals(
        index=first.index,
        steps=tuple(checkpoint.step for checkpoint in states),
        labels=first.labels,
        loss=np.stack([state.loss for state in seen], axis=1),
        margin=np.stack([state.margin for state in seen], axis=1),
        el2n=np.stack([state.el2n for state in seen], axis=1),
        correct=np.stack([state.margin > 0 for state in seen], axis=1),
        probabilities=np.mean([state.probabilities for state in seen], axis=0, dtype=np.float32),
        final_probabilities=last.probabilities,
        features=last.features,
        early_features=seen[early].features,
        hidden=kept,
    )


@dataclass(frozen=True)
class _State:
    """What one state says of all samples."""

    index: Indices
    labels: Indices
    loss: Any
    margin: Any
    el2n: Any
    probabilities: Any
    features: Any
    logits: Any


class _Observer(nn.Module):
    """Logits, targets and features of a batch at one state of the model, which is only read."""

    def __init__(self, task: Classification, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.model = task.model
        loss = PerSampleLoss(task, state)
        self._tensors = {f"model.{name}": t for name, t in (*loss.rest.items(), *loss.parameters.items())}
        self.device = loss.device

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        inputs, targets = split(batch)
        return widened(call(self.model, inputs)), targets

    def at_state(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        """Float64[Tensor, "B C"], Int64[Tensor, "B"], and Float[Tensor, "B d"], the input of the layer of the logits."""
        passed: list[tuple[Tensor, Tensor]] = []

        def note(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            passed.append((inputs[0], output))

        hooks = [m.register_forward_hook(note) for m in self.model.modules() if isinstance(m, nn.Linear)]
        try:
            logits, targets = functional_call(self, self._tensors, (to_device(batch, self.device),), tie_weights=True)
        finally:
            for hook in hooks:
                hook.remove()
        _check(logits, targets)
        features = next((x for x, y in reversed(passed) if y.shape == logits.shape and x.ndim == 2), None)
        return logits, targets, features


def _states(trajectory: Trajectory) -> list[Checkpoint]:
    states = [checkpoint for checkpoint in trajectory.checkpoints if checkpoint.step > 0]
    if trajectory.final is not None and trajectory.final.step > 0:
        states.append(trajectory.final)
    if not states:
        raise TrajectoryError("the trajectory has no state after its first step; record more checkpoints")
    return states


def _batch_size(observer: _Observer, source: Source) -> int:
    sample = Sample.of(source)
    if observer.device.type != "cuda":
        return from_sample_bytes(sample.batch, sample.count)
    few = sample.thinned(min(16, sample.count))
    with frozen(observer.model), torch.inference_mode():
        return from_free_memory(
            to_device(few.batch, observer.device), few.count, observer.device, lambda batch, _: observer.at_state(batch)
        )


def _observed(observer: _Observer, source: Source, size: int, features: bool, shown: Phase) -> _State:
    parts: list[tuple[Any, ...]] = []
    with frozen(observer.model), torch.inference_mode():
        for indices, batch in source.batches(size):
            parts.append((indices, *_measured(*observer.at_state(batch), features)))
            shown.advance(len(indices))
    columns: list[Any] = [None if column[0] is None else np.concatenate(column) for column in zip(*parts, strict=True)]
    return _State(*columns)


def _measured(logits: Tensor, targets: Tensor, features: Tensor | None, wanted: bool) -> tuple[Any, ...]:
    given = targets.to(torch.int64).unsqueeze(1)
    own = logits.gather(1, given).squeeze(1)
    others = logits.scatter(1, given, -torch.inf).max(dim=1).values
    probabilities = torch.softmax(logits, dim=1)
    error = probabilities.scatter_add(1, given, torch.full_like(probabilities[:, :1], -1.0).expand_as(given))
    return (
        targets.to(torch.int64).cpu().numpy(),
        F.cross_entropy(logits, targets.to(torch.int64), reduction="none").cpu().double().numpy(),
        (own - others).cpu().double().numpy(),
        error.norm(dim=1).cpu().double().numpy(),
        probabilities.float().cpu().numpy(),
        features.float().cpu().numpy() if wanted and features is not None else None,
        logits.float().cpu().numpy() if wanted else None,
    )


def _narrowed(features: Singles) -> Singles:
    """At most ``_WIDEST`` columns, by a random projection that is the same for every state."""
    width = features.shape[1]
    if width <= _WIDEST:
        return features
    projection = np.random.default_rng(0).standard_normal((width, _WIDEST)).astype(np.float32) / np.sqrt(_WIDEST)
    narrowed: Singles = features @ projection
    return narrowed


def _check(logits: Tensor, targets: Tensor) -> None:
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise TaskError(f"the model returned shape {tuple(logits.shape)}; signals need logits of shape (B, 2 or more)")
    if targets.ndim != 1 or targets.is_floating_point():
        raise TaskError(
            f"the targets are {targets.dtype} of shape {tuple(targets.shape)}; signals need class numbers of shape (B,), so "
            "make them whole numbers, of probabilities the most probable class"
        )
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= logits.shape[1]:
        raise TaskError(
            f"a target is class {low if low < 0 else high} and the logits have {logits.shape[1]} classes, numbered from 0; "
            "leave out or relabel those samples"
        )
