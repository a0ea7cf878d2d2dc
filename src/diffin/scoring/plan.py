"""Deciding how to score: the back end, the batch size, and whether an earlier run can be gone on with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from diffin.batches import Batch, batch_size, digest, select
from diffin.derivatives.base import Directional
from diffin.errors import DatasetError, ProbeError, ScoringError
from diffin.probes import ProbeSet
from diffin.scoring import batching
from diffin.scoring.engine import Engine
from diffin.scoring.manifest import Manifest, describe_probes
from diffin.sources import Source
from diffin.task import PerSampleLoss, Task, check_losses, frozen

Derivatives = Literal["auto", "difference", "forward", "ghost"] | Directional
BatchSize = Literal["auto"] | int

_SAMPLES = 64
_FEWEST = 16
_MEASURED_FIRST = 16


@dataclass(frozen=True)
class Settings:
    """What the caller asked for.

    Raises:
        ScoringError: a number makes no sense.
    """

    derivatives: Derivatives
    batch_size: BatchSize
    part_rows: int

    def __post_init__(self) -> None:
        if self.batch_size != "auto" and (not isinstance(self.batch_size, int) or self.batch_size < 1):
            raise ScoringError(
                f"batch_size={self.batch_size!r}; pass 'auto' or the number of samples to measure at once"
            )
        if self.part_rows < 1:
            raise ScoringError(f"part_rows={self.part_rows}; pass the number of samples of a part, 1 or more")


@dataclass(frozen=True)
class Sample:
    """A few samples of a dataset, spread over it where any sample can be read.

    Attributes:
        batch: the samples.
        count: how many.
    """

    batch: Batch
    count: int

    @classmethod
    def of(cls, source: Source) -> Sample:
        if source.random_access and source.length is not None:
            spread = np.unique(np.linspace(0, source.length - 1, min(_SAMPLES, source.length)).round().astype(np.int64))
            source = source.select(spread)
        indices, batch = next(source.batches(_SAMPLES, stop=_SAMPLES))
        return cls(batch, len(indices))

    def digest(self) -> str:
        """Identifies the samples by the bytes of their tensors."""
        return digest(self.batch)

    def thinned(self, count: int) -> Sample:
        """``count`` of the samples, still spread over the dataset."""
        if count >= self.count:
            return self
        return Sample(select(self.batch, torch.linspace(0, self.count - 1, count).round().long()), count)

    def usable(self, task: Task) -> Sample | None:
        """Samples with a finite loss, if there are any and the task makes one independent loss of each.

        Fewer of large samples are taken, because the checks cost a few gradients of each.

        Raises:
            TaskError: the losses of the task cannot be used.
            DatasetError: the collate function did not make a batch of as many samples as it was given.
        """
        if batch_size(self.batch) != self.count:
            raise DatasetError(
                f"the collate function made a batch of {batch_size(self.batch)} samples of {self.count}; pass collate= "
                "a function that keeps every sample, in order, along the first dimension of the first tensor"
            )
        sample = self.thinned(max(_FEWEST, batching.from_sample_bytes(self.batch, self.count)))
        while True:
            try:
                return sample._finite(task)
            except RuntimeError as error:
                if sample.count == 1 or not batching.is_out_of_memory(error):
                    raise
            sample = sample.thinned(sample.count // 2)

    def _finite(self, task: Task) -> Sample | None:
        with frozen(task.model), torch.no_grad():
            loss = PerSampleLoss(task)
            losses = loss(loss.parameters, loss.to_device(self.batch))
        if not isinstance(losses, torch.Tensor) or losses.shape != (self.count,):
            check_losses(task, self.batch)  # says what is wrong with it
        rows = torch.nonzero(torch.isfinite(losses).cpu()).flatten()
        if not len(rows):
            return None
        batch = self.batch if len(rows) == self.count else select(self.batch, rows)
        check_losses(task, batch)
        return Sample(batch, len(rows))


@dataclass(frozen=True)
class Plan:
    """How to score.

    Attributes:
        manifest: everything that decides the bytes of the result.
        engine: what measures.
    """

    manifest: Manifest
    engine: Engine


def begin(task: Task, probes: ProbeSet, source: Source, sample: Sample, settings: Settings) -> Plan:
    """Choose what was left to choose.

    Raises:
        TaskError: the losses of the task cannot be used.
        DerivativeError: no back end works on this model.
        ScoringError: the loss of every sample is NaN or infinite.
    """
    if not len(probes):
        raise ProbeError(f"the probes in {probes.path} have no checkpoint; build them from a trajectory that has one")
    usable = sample.usable(task)
    if usable is None:
        raise ScoringError(
            f"the loss of each of {sample.count} samples spread over the dataset is not finite; look at the samples, "
            "and at the model's parameters"
        )
    report: Mapping[str, Any] | None = None
    if isinstance(settings.derivatives, str):
        from diffin.derivatives.selfcheck import choose

        choice = choose(task, probes, usable.batch, settings.derivatives)
        backend, report = choice.backend, choice.report.to_json()
    else:
        backend = settings.derivatives
    engine = Engine(task, probes, backend)
    asked = settings.batch_size
    size = min(_automatic(task, engine, usable), settings.part_rows) if asked == "auto" else asked
    manifest = _manifest(task, probes, source, sample, settings, describe(backend), size, report)
    return Plan(manifest, engine)


def check_continues(
    recorded: Manifest, task: Task, probes: ProbeSet, source: Source, sample: Sample, settings: Settings, output: str
) -> None:
    """Refuse to go on with a run of other probes, data or settings.

    Raises:
        ScoringError: saying what differs, and what to pass instead.
    """
    asked: Mapping[str, Any] = recorded.derivatives
    if not isinstance(settings.derivatives, str):
        asked = describe(settings.derivatives)
    elif settings.derivatives not in ("auto", recorded.derivatives["name"]):
        asked = {"name": settings.derivatives}
    size = recorded.batch_size if settings.batch_size == "auto" else settings.batch_size
    differences = recorded.differences(_manifest(task, probes, source, sample, settings, asked, size, None))
    if differences:
        raise ScoringError(
            f"output={output!r} holds scores of another run; what differs: {'; '.join(differences)}. Pass another "
            "output, or resume=False to replace them"
        )


def go_on(task: Task, probes: ProbeSet, settings: Settings, recorded: Manifest) -> Plan:
    """The plan of a run that was interrupted, with the back end and the step that it had."""
    if isinstance(settings.derivatives, str):
        from diffin.derivatives.selfcheck import from_description

        backend = from_description(recorded.derivatives)
    else:
        backend = settings.derivatives
    return Plan(recorded, Engine(task, probes, backend))


def describe(backend: Directional) -> dict[str, Any]:
    """What recreates a back end: its own description if it has one, its name otherwise."""
    own = getattr(backend, "describe", None)
    return dict(own()) if own is not None else {"name": backend.name}


def _manifest(
    task: Task,
    probes: ProbeSet,
    source: Source,
    sample: Sample,
    settings: Settings,
    derivatives: Mapping[str, Any],
    size: int,
    self_check: Mapping[str, Any] | None,
) -> Manifest:
    return Manifest(
        probes=describe_probes(probes),
        derivatives=derivatives,
        batch_size=size,
        part_rows=settings.part_rows,
        length=source.length,
        sample=sample.digest(),
        self_check=self_check,
        device=str(task.device),
    )


def _automatic(task: Task, engine: Engine, sample: Sample) -> int:
    if task.device.type != "cuda":
        return batching.from_sample_bytes(sample.batch, sample.count)
    first = sample.thinned(_MEASURED_FIRST)
    with frozen(task.model):
        return batching.from_free_memory(first.batch, first.count, task.device, engine.measure_first)
