"""Deciding how to score: the back end, the batch size, and whether an earlier run can be gone on with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from diffin.derivatives.base import Directional
from diffin.errors import DerivativeError, ProbeError, ScoringError
from diffin.memory import from_sample_bytes
from diffin.probes import ProbeSet
from diffin.sample import Sample
from diffin.scoring import batching
from diffin.scoring.engine import Engine
from diffin.scoring.manifest import Manifest, describe_probes
from diffin.sources import Source
from diffin.task import Task, frozen

Derivatives = Literal["auto", "difference", "forward", "ghost"] | Directional
BatchSize = Literal["auto"] | int

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
        backend, report = _chosen(task, probes, usable, settings.derivatives)
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
    asked = settings.derivatives
    backend = _recreated(probes, recorded.derivatives) if isinstance(asked, str) else asked
    return Plan(recorded, Engine(task, probes, backend))


def _chosen(
    task: Task, probes: ProbeSet, usable: Sample, name: Literal["auto", "difference", "forward", "ghost"]
) -> tuple[Directional, Mapping[str, Any] | None]:
    """A back end for these probes, and what the check of it found."""
    from diffin.derivatives import own_check, selfcheck

    if not probes.of_self:
        choice = selfcheck.choose(task, probes, usable.batch, name)
        return choice.backend, choice.report.to_json()
    if name != "auto":
        raise DerivativeError(f"derivatives={name!r} cannot measure probes of self-influence; pass derivatives='auto'")
    own, report = own_check.choose(task, probes, usable.batch)
    return own, None if report is None else report.to_json()


def _recreated(probes: ProbeSet, description: Mapping[str, Any]) -> Directional:
    from diffin.derivatives import own_check, selfcheck

    return own_check.from_description(description) if probes.of_self else selfcheck.from_description(description)


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
        terms=probes.metadata.get("terms", "draws"),
        keyed=source.keyed,
    )


def _automatic(task: Task, engine: Engine, sample: Sample) -> int:
    if task.device.type != "cuda":
        size, most = from_sample_bytes(sample.batch, sample.count), engine.most_rows()
        return size if most is None else min(size, most)
    first = sample.thinned(_MEASURED_FIRST)
    with frozen(task.model):
        return batching.from_free_memory(first.batch, first.count, task.device, engine.measure_first)
