"""What the rules go by: signals and influences of a recorded training, found when they are asked for."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from diffin.actions.select.rules import Features
from diffin.errors import DatasetError, TaskError
from diffin.estimators import MoSo, ProbingEstimator, TracIn
from diffin.own_influence import self_influence
from diffin.scoring import Scores, score
from diffin.scoring.columns import Floats
from diffin.signals import Signals, observe
from diffin.signals.gradient_norms import gradient_norms
from diffin.sources import Collate, Indices, Source
from diffin.task import Task
from diffin.tasks.supervised import split
from diffin.trajectory import Trajectory

_EARLY = 0.2
"""EL2N and GraNd are taken where so much of the training is behind, or less: later, what was learned by heart looks easy."""

Fit = Callable[[Indices, Path, int], object]
"""Trains a new model on some samples of the training set, and records it into a folder, with a seed."""


def labels_of(source: Source, batch_size: int = 1024) -> Indices | None:
    """The class of every sample, Int64[ndarray, "N"]; ``None`` where samples have no class number."""
    parts = []
    for _, batch in source.every(batch_size):
        try:
            _, targets = split(batch)
        except TaskError:
            return None
        if getattr(targets, "ndim", 0) != 1 or targets.is_floating_point():
            return None
        parts.append(targets.cpu().numpy().astype(np.int64))
    return np.concatenate(parts)


@dataclass
class Whole:
    """The recorded training on all of the data: given, or made when it is asked for.

    Attributes:
        given: by the caller, or ``None``.
        fit: what makes it otherwise, or ``None``.
        size: N.
        seed: of that training.
        folder: where it is kept; ``None`` for a temporary one.
        asked: whether it was asked for.
        seconds: that making it took.
    """

    given: Trajectory | None
    fit: Fit | None
    size: int
    seed: int
    folder: Path | None
    asked: bool = field(default=False, init=False)
    seconds: float = field(default=0.0, init=False)

    @cached_property
    def trajectory(self) -> Trajectory:
        self.asked = True
        if self.given is not None:
            return self.given
        assert self.fit is not None  # `select` has refused by now
        if self.folder is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="diffin-whole-")
        folder = Path(self._temporary.name) / "run" if self.folder is None else self.folder
        if not folder.exists():
            part = folder.with_name(folder.name + ".part")
            shutil.rmtree(part, ignore_errors=True)
            part.parent.mkdir(parents=True, exist_ok=True)
            start = time.perf_counter()
            self.fit(np.arange(self.size, dtype=np.int64), part, self.seed)
            self.seconds = time.perf_counter() - start
            part.rename(folder)
        return Trajectory.open(folder)


@dataclass(frozen=True)
class Reading:
    """How data sets are read, and whether progress is shown."""

    collate: Collate | None = None
    workers: int = 0
    progress: bool = True


@dataclass
class Evidence:
    """A training on all of the data, and what was found about it.

    Attributes:
        task: model and loss.
        train: the training set.
        query: the samples whose mean loss is asked about, or ``None``.
        whole: the training.
        reading: how data are read.
        output: a folder for what is expensive, or ``None``.
    """

    task: Task
    train: Any
    query: Any
    whole: Whole
    reading: Reading = Reading()
    output: Path | None = None

    @cached_property
    def signals(self) -> Signals:
        """Of every sample, along the training."""
        return observe(self.task, self.whole.trajectory, self.train, **vars(self.reading))

    @property
    def features(self) -> Features:
        """Float32[ndarray, "N d"], the input of the last linear layer.

        Raises:
            TaskError: there is no such layer.
        """
        features = self.signals.features
        if features is None:
            raise TaskError(
                "the model has no linear layer that makes the logits, so there are no features to tell samples apart by; "
                "pass method='ccs', 'influence' or 'iterated'"
            )
        return features

    @property
    def el2n(self) -> Floats:
        """Float64[ndarray, "N"], early in the training."""
        early = np.array(self.signals.steps) <= _EARLY * self.signals.steps[-1]
        early[0] = True
        mean: Floats = self.signals.el2n[:, early].mean(axis=1)
        return mean

    @cached_property
    def gradient_norm(self) -> Floats:
        """Float64[ndarray, "N"], GraNd: the norm of the gradient, in the steps the optimizer takes, early in the training."""
        own = self._own("tracin")
        early = np.array([0 < step <= _EARLY * self.whole.trajectory.total_steps for step in own.steps])
        if not early.any():
            early[min(1, len(early) - 1)] = True
        norm: Floats = gradient_norms(own.terms[:, early]).mean(axis=1)
        return norm

    @cached_property
    def self_influence(self) -> Floats:
        """Float64[ndarray, "N"], of each sample on its own loss."""
        found: Floats = self._own("default").influence
        return found

    @cached_property
    def influence(self) -> Floats:
        """Float64[ndarray, "N"], on the query."""
        if self.query is None:
            raise DatasetError(
                "query=None, and the method asks about a query; pass query=, e.g. a clean validation set"
            )
        return self._scored("influence", self.query, None)

    @cached_property
    def moso(self) -> Floats:
        """Float64[ndarray, "N"], on the training risk."""
        return self._scored("moso", None, MoSo())

    def _scored(self, name: str, query: Any, estimator: ProbingEstimator | None) -> Floats:
        found: Floats = score(
            self.task, self.whole.trajectory, self.train, query=query, estimator=estimator, output=self._folder(name),
            **vars(self.reading),
        ).influence  # fmt: skip
        return found

    def _own(self, name: str) -> Scores:
        return self_influence(
            self.task, self.whole.trajectory, self.train, estimator=TracIn() if name == "tracin" else None,
            output=self._folder(f"self-{name}"), **vars(self.reading),
        )  # fmt: skip

    def _folder(self, name: str) -> Path | None:
        return None if self.output is None else self.output / name
