"""Measuring probes on every sample of a dataset, into one row a sample."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from diffin.errors import ScoringError
from diffin.probes import ProbeSet
from diffin.sample import Sample
from diffin.scoring.columns import NOT_FINITE
from diffin.scoring.engines import EngineLike, Job, chosen
from diffin.scoring.engines.base import Positions
from diffin.scoring.manifest import LISTED_FAILURES, Manifest
from diffin.scoring.plan import (
    BatchSize,
    Derivatives,
    PartRows,
    Plan,
    Settings,
    begin,
    check_continues,
    composed,
)
from diffin.scoring.scores import Scores
from diffin.scoring.sink import FolderParts, MemoryParts, Parts, missing_runs
from diffin.sources import Collate, Source, open_source
from diffin.task import Task
from diffin.trajectory.store import MANIFEST as RECORDING

_log = logging.getLogger(__name__)

PART_ROWS = 65_536


def score_probes(
    task: Task,
    probes: ProbeSet,
    dataset: Any,
    *,
    derivatives: Derivatives = "auto",
    batch_size: BatchSize = "auto",
    output: str | Path | None = None,
    resume: bool = True,
    progress: bool = True,
    workers: int = 0,
    collate: Collate | None = None,
    part_rows: PartRows = "auto",
    engine: EngineLike = "local",
) -> Scores:
    """Measure probes on every sample of a dataset, trained on or not.

    Memory does not grow with the number of samples if ``output`` is given. A run that was interrupted, at any moment
    and however, goes on where it stopped and writes the bytes that it would have written.

    Args:
        task: model and loss; the model is read, never written.
        probes: what to measure.
        dataset: anything :func:`diffin.sources.open_source` reads.
        derivatives: ``"difference"``, ``"forward"``, ``"ghost"``, or ``"auto"`` for the cheapest that a check on a few
            samples finds accurate; or a back end. The result of the check is in the metadata of the scores.
        batch_size: samples measured at once; ``"auto"`` to choose it by the size of a sample or the memory of a GPU.
            Scores depend on it by rounding only.
        output: a folder for the scores; ``None`` to keep them in memory.
        resume: go on with what ``output`` holds, or return it if it is complete; ``False`` replaces it.
        progress: show a bar with the time left.
        workers: processes that read the data, for each that measures. Scores do not depend on it.
        collate: makes a batch of a list of samples; ``None`` for the default.
        part_rows: samples of a part of the output: what an interrupted run has to repeat, and what engines hand out.
            ``"auto"`` for some hundred parts of 1,024 to 65,536.
        engine: who measures: ``"local"``, this process; ``"torchrun"``, all processes that ``torchrun`` has started, each of
            which makes this call; ``"ray"``, a Ray cluster; or an engine with settings, :class:`diffin.scoring.Ray`. The
            bytes of the scores are the same. All but the first need ``output``, and a dataset that gives any sample by its
            position.

    Returns:
        Influence of every sample, in the order of the dataset: negative helps, positive harms. A sample whose loss or
        derivative is not finite has none, and is listed in :attr:`Scores.failed`.

    Raises:
        TaskError: the task's losses cannot be used.
        DatasetError: the dataset is empty, or cannot be read in order more than once.
        DerivativeError: no back end works on this model.
        ScoringError: ``output`` holds something else, is damaged, or cannot be written; or all samples failed.
    """
    settings = Settings(derivatives, batch_size, part_rows)
    if not isinstance(probes, ProbeSet):
        raise ScoringError(f"probes is a {type(probes).__name__}: pass diffin.ProbeSet.open(folder)")
    if output is not None and (Path(output) / RECORDING).exists():
        raise ScoringError(f"output={str(output)!r} is a recorded training; pass another folder for the scores")
    by = chosen(engine)
    with by.ranks(task.device) as ranks:
        source = composed(task, open_source(dataset, collate=collate, workers=workers))
        by.check(source, output)
        parts: Parts = MemoryParts() if output is None else FolderParts(output)
        plans: list[Plan] = []

        def decide() -> tuple[Manifest, list[Positions]]:
            manifest, plan = _decided(task, probes, source, settings, parts, resume)
            plans.extend([] if plan is None else [plan])
            return manifest, _missing(manifest, parts)

        manifest, missing = ranks.once(decide)
        if manifest.rows is not None and not missing and output is not None:
            return Scores.open(output)
        planned = plans[0] if plans else None
        job = Job(
            task,
            probes,
            dataset,
            collate,
            workers,
            source,
            settings,
            manifest,
            parts,
            missing,
            progress,
            ranks,
            planned,
        )
        by.measure(job)

        def complete() -> Manifest:
            found = completed(manifest, parts)
            parts.write_manifest(found)
            return found

        return Scores(parts, ranks.once(complete))


def _decided(
    task: Task, probes: ProbeSet, source: Source, settings: Settings, parts: Parts, resume: bool
) -> tuple[Manifest, Plan | None]:
    """How to score, written down before anything is measured; the plan is there if it had to be made for that."""
    sample = Sample.of(source)
    if not isinstance(parts, FolderParts):
        plan = begin(task, probes, source, sample, settings)
        return plan.manifest, plan
    recorded = parts.manifest() if resume else None
    if recorded is not None:
        check_continues(recorded, task, probes, source, sample, settings, str(parts.path))
        parts.prepare()
        return recorded, None
    plan = begin(task, probes, source, sample, settings)
    parts.prepare()
    if not resume:
        parts.clear()
    parts.write_manifest(plan.manifest)
    return plan.manifest, plan


def _missing(manifest: Manifest, parts: Parts) -> list[Positions]:
    length = manifest.length if manifest.rows is None else manifest.rows
    return missing_runs(parts.finished(), length, manifest.part_rows)


def completed(manifest: Manifest, parts: Parts) -> Manifest:
    """The manifest with what the parts hold, those of an earlier, interrupted run included."""
    rows = failures = unreadable = 0
    listed: list[int] = []
    wanted = ["index", "influence", *(["failure"] if manifest.keyed else [])]
    for number in sorted(parts.finished()):
        table = parts.read(number, wanted)
        rows += table.num_rows
        table = table.filter(table.column("influence").is_null())
        failures += table.num_rows
        listed += table.column("index").to_pylist()[: LISTED_FAILURES - len(listed)]
        if manifest.keyed:
            unreadable += sum(reason != NOT_FINITE for reason in table.column("failure").to_pylist())
    if failures == rows:
        raise ScoringError(
            f"not one of {rows} samples could be read; look at the column 'failure' of the scores"
            if unreadable == rows
            else f"the loss or its derivative is not finite for any of the {rows} samples; look at the samples, and at the "
            "parameters of the checkpoints"
        )
    if failures:
        what = "could not be read" if unreadable == failures else "have a loss or derivative that is not finite"
        if 0 < unreadable < failures:
            what += ", or could not be read"
        _log.warning(
            "%d of %d samples %s (%s%s); their scores are null, and Scores.failed lists them",
            failures,
            rows,
            what,
            ", ".join(map(str, listed[:5])),
            ", ..." if failures > 5 else "",
        )
    return manifest.completed(rows, failures, tuple(listed))
