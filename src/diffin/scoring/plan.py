"""Deciding how to score: the back end, the batch size, and whether an earlier run can be gone on with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from diffin.derivatives.base import Directional
from diffin.errors import DerivativeError, ProbeError, ScoringError
from diffin.memory import from_sample_bytes, power_of_two
from diffin.probes import ProbeSet
from diffin.sample import Sample
from diffin.scoring import batching
from diffin.scoring.engine import Engine
from diffin.scoring.manifest import Manifest, describe_probes
from diffin.sources import Source
from diffin.sources.composed import Composed
from diffin.task import Task, frozen

Derivatives = Literal["auto", "difference", "forward", "ghost"] | Directional
BatchSize = Literal["auto"] | int
PartRows = Literal["auto"] | int

_PARTS = 256
_PART_ROWS = (1024, 65_536)
_GROUPS = 32

_MEASURED_FIRST = 16


@dataclass(frozen=True)
class Settings:
    """What the caller asked for.

    Raises:
        ScoringError: a number makes no sense.
    """

    derivatives: Derivatives
    batch_size: BatchSize
    part_rows: PartRows

    def __post_init__(self) -> None:
        if self.batch_size != "auto" and (not isinstance(self.batch_size, int) or self.batch_size < 1):
            raise ScoringError(
                f"batch_size={self.batch_size!r}; pass 'auto' or the number of samples to measure at once"
            )
        if self.part_rows != "auto" and self.part_rows < 1:
            raise ScoringError(
                f"part_rows={self.part_rows}; pass 'auto', or the number of samples of a part, 1 or more"
            )

    def rows_of_part(self, length: int | None, group_size: int | None) -> int:
        """Samples of a part; by itself a power of two, so that there is work for many and not too many files."""
        if self.part_rows != "auto":
            return self.part_rows
        low, high = _PART_ROWS
        rows = high if length is None else max(low, min(high, power_of_two(length / _PARTS)))
        # Groups are made inside a part: of many, so that few samples are measured twice to fill up the last.
        return rows if group_size is None else max(rows, power_of_two(_GROUPS * group_size))


@dataclass(frozen=True)
class Plan:
    """How to score.

    Attributes:
        manifest: everything that decides the bytes of the result.
        engine: what measures.
    """

    manifest: Manifest
    engine: Engine


def composed(task: Task, source: Source) -> Source:
    """The source as scoring reads it: in groups, where the losses of the task are coupled.

    Raises:
        DatasetError: they are, and samples can only be read in order.
    """
    return source if task.group_size is None else Composed(source, task.group_size, task.group_seed)


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
    asked = _asked_size(task, settings)
    rows = settings.rows_of_part(source.length, task.group_size)
    size = min(_automatic(task, engine, usable), rows) if asked == "auto" else asked
    manifest = _manifest(task, probes, source, sample, describe(backend), size, rows, report)
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
    wanted = _asked_size(task, settings)
    size = recorded.batch_size if wanted == "auto" else wanted
    rows = recorded.part_rows if settings.part_rows == "auto" else settings.part_rows
    differences = recorded.differences(_manifest(task, probes, source, sample, asked, size, rows, None))
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
    derivatives: Mapping[str, Any],
    size: int,
    part_rows: int,
    self_check: Mapping[str, Any] | None,
) -> Manifest:
    if task.group_size is not None:
        assert isinstance(source, Composed)  # by `composed`
        # Beside the back end: both decide what is measured of a sample, and going on takes the same of both.
        derivatives = {**derivatives, "groups": source.describe()}
    return Manifest(
        probes=describe_probes(probes),
        derivatives=derivatives,
        batch_size=size,
        part_rows=part_rows,
        length=source.length,
        sample=sample.digest(),
        self_check=self_check,
        device=str(task.device),
        terms=probes.metadata.get("terms", "draws"),
        keyed=source.keyed,
    )


def _asked_size(task: Task, settings: Settings) -> BatchSize:
    """The batch size that was asked for; of a coupled task, that of its groups.

    Raises:
        ScoringError: another one was asked for, or a part would be smaller than a group.
    """
    size = task.group_size
    if size is None:
        return settings.batch_size
    if settings.batch_size not in ("auto", size):
        raise ScoringError(
            f"batch_size={settings.batch_size!r}: the losses of the task are coupled, and are taken of groups of {size}; "
            "pass 'auto', or another group_size to the task"
        )
    if settings.part_rows != "auto" and settings.part_rows < size:
        raise ScoringError(f"part_rows={settings.part_rows}; pass {size}, the group_size of the task, or more")
    return size


def _automatic(task: Task, engine: Engine, sample: Sample) -> int:
    if task.device.type != "cuda":
        size, most = from_sample_bytes(sample.batch, sample.count), engine.most_rows()
        return size if most is None else min(size, most)
    first = sample.thinned(_MEASURED_FIRST)
    with frozen(task.model):
        return batching.from_free_memory(first.batch, first.count, task.device, engine.measure_first)
