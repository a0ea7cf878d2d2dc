"""What a deletion did, in the numbers a person would ask for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffin import checked, vectors
from diffin.actions.delete.membership import Floats, area_under_curve, population_scores
from diffin.errors import DiffinError, TaskError
from diffin.losses import losses_at
from diffin.sources import Source
from diffin.task import PerSampleLoss, Task
from diffin.tasks.classification import Classification
from diffin.tasks.supervised import split

SETS = ("forgotten", "kept", "test")


@dataclass(frozen=True)
class Measured:
    """A model on a set.

    Attributes:
        samples: how many.
        loss: mean.
        accuracy: share classified as labelled; ``None`` for a task without classes.
    """

    samples: int
    loss: float
    accuracy: float | None


@dataclass(frozen=True)
class Certified:
    """A model.

    Attributes:
        on: by set, of :data:`SETS`; ``"test"`` is missing where no test set was given.
        threshold_attack: AUC of telling the forgotten from the test samples by their loss; ``None`` without test samples.
        population_attack: AUC of the attack with shadow models; ``None`` without.
        distance: of its parameters from the original's, and
        to_retrained: from the retrained model's, where there is one.
        cosine: of its displacement with the retrained model's.
        gap_closed: loss on the forgotten set minus the original's, over the same of the retrained model; 1 is as retrained.
    """

    on: dict[str, Measured]
    threshold_attack: float | None = None
    population_attack: float | None = None
    distance: float = 0.0
    to_retrained: float | None = None
    cosine: float | None = None
    gap_closed: float | None = None


@dataclass(frozen=True)
class Certificate:
    """The models before and after, side by side.

    Attributes:
        models: ``"original"``, ``"deleted"``, and, where there is one, ``"retrained"``.
        regime: see :class:`diffin.actions.delete.regime.Regime`; its fields.
        seconds: what deletion took, and retraining where it was done.
        settings: samples, estimator, seeds, the optimizer; JSON-able.
    """

    models: dict[str, Certified]
    regime: dict[str, Any]
    seconds: dict[str, float]
    settings: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """JSON-able; what is not a number is ``None``."""
        found: dict[str, Any] = _plain(asdict(self))
        return found

    @staticmethod
    def of_json(content: Mapping[str, Any]) -> Certificate:
        """The inverse of :meth:`to_json`.

        Raises:
            DiffinError: a field is missing, or of another type.
        """
        try:
            models = checked.mapping(content, "models")
            found = {name: _certified(checked.mapping(models, name)) for name in models}
            for name in ("original", "deleted"):
                checked.entry(checked.entry(models, name)["on"], "forgotten")
            regime, settings = checked.mapping(content, "regime"), checked.mapping(content, "settings")
            return Certificate(found, regime, checked.values(content, "seconds", checked.real), settings)
        except (TypeError, ValueError) as error:
            raise DiffinError(f"the certificate is not one of diffin delete ({error}); delete again") from error


def _certified(content: Mapping[str, Any]) -> Certified:
    """The inverse of ``asdict``, up to numbers that are not finite: those are ``None``."""
    on = checked.mapping(content, "on")
    for name in content:
        if name != "on":
            checked.optional(content, name, checked.real)
    for name in on:
        measured = checked.mapping(on, name)
        checked.whole(measured, "samples")
        for field_name in ("loss", "accuracy"):
            checked.optional(measured, field_name, checked.real)
    return Certified(**{**content, "on": {name: Measured(**measured) for name, measured in on.items()}})


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class Looked:
    """What a model says of every sample of a set.

    Attributes:
        losses: Float64[ndarray, "n"].
        correct: Bool[ndarray, "n"], as 0 and 1; ``None`` for a task without classes.
    """

    losses: Floats
    correct: Floats | None

    @property
    def measured(self) -> Measured:
        accuracy = None if self.correct is None else float(self.correct.mean())
        return Measured(len(self.losses), float(self.losses.mean()), accuracy)


def look(task: Task, state: Mapping[str, Tensor], source: Source, batch_size: int) -> Looked:
    """The loss of every sample, and whether it is classified as labelled, in evaluation mode."""
    correct: list[Tensor | None] = []
    batches = (batch for _, batch in source.every(batch_size))
    losses = losses_at(
        PerSampleLoss(task, state), batches, heed=lambda batch, output: correct.append(_correct(task, batch, output))
    )
    known = [c for c in correct if c is not None]
    whole = torch.cat(known).double().cpu().numpy() if len(known) == len(correct) else None
    return Looked(losses, whole)


def _correct(task: Task, batch: Any, output: Any) -> Tensor | None:
    if not isinstance(task, Classification) or output is None:
        return None
    try:
        _, targets = split(batch)
    except TaskError:
        return None
    logits = output if isinstance(output, Tensor) else output.logits
    classes = targets.argmax(dim=-1) if targets.is_floating_point() else targets
    return logits.argmax(dim=-1) == classes


def certified(
    looked: Mapping[str, Looked],
    *,
    parameters: Mapping[str, Tensor],
    original: Mapping[str, Tensor],
    retrained: Mapping[str, Tensor] | None,
    losses: tuple[float, float | None],
    shadows: Mapping[str, Floats] | None,
) -> Certified:
    """The numbers of one model.

    Args:
        looked: by set.
        parameters: of the model, and
        original: of the original, and
        retrained: of the retrained one.
        losses: on the forgotten set, of the original and of the retrained model.
        shadows: of ``"forgotten"`` and ``"test"``: Float64[ndarray, "R n"], see :func:`population_scores`.
    """
    forgotten, test = looked["forgotten"].losses, looked.get("test")
    threshold = None if test is None else area_under_curve(-forgotten, -test.losses)
    population = None
    if shadows is not None and test is not None:
        population = area_under_curve(
            population_scores(forgotten, shadows["forgotten"]), population_scores(test.losses, shadows["test"])
        )
    moved = vectors.add(vectors.like(parameters, original), original, -1.0)
    to_retrained = cosine = closed = None
    if retrained is not None and losses[1] is not None:
        wanted = vectors.add(vectors.like(retrained, original), original, -1.0)
        to_retrained = vectors.norm(vectors.add(moved, wanted, -1.0))
        lengths = vectors.norm(moved) * vectors.norm(wanted)
        cosine = vectors.dot(moved, wanted) / lengths if lengths else None
        gap = losses[1] - losses[0]
        closed = float(forgotten.mean() - losses[0]) / gap if gap else None
    measured = {name: entry.measured for name, entry in looked.items()}
    return Certified(measured, threshold, population, vectors.norm(moved), to_retrained, cosine, closed)


def left_out(losses: Floats, trained_on: np.ndarray[Any, np.dtype[np.bool_]]) -> Floats:
    """Losses of shadow models, NaN where they were trained on the sample. Float64[ndarray, "R n"]"""
    return np.where(trained_on, np.nan, losses)
