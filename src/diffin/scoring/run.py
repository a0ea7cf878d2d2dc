"""Measuring probes on every sample of a dataset, into one row a sample."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from diffin.errors import ScoringError
from diffin.probes import ProbeSet
from diffin.progress import phase
from diffin.sample import Sample
from diffin.scoring.manifest import LISTED_FAILURES, Manifest
from diffin.scoring.measuring import Measuring
from diffin.scoring.plan import BatchSize, Derivatives, Plan, Settings, begin, check_continues, go_on
from diffin.scoring.scores import Scores
from diffin.scoring.sink import FolderParts, MemoryParts, Parts, missing_runs
from diffin.sources import Collate, Source, open_source
from diffin.task import Task, frozen
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
    part_rows: int = PART_ROWS,
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
        workers: processes that read the data. Scores do not depend on it.
        collate: makes a batch of a list of samples; ``None`` for the default.
        part_rows: samples of a part of the output; what an interrupted run has to repeat.

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
    source = open_source(dataset, collate=collate, workers=workers)
    sample = Sample.of(source)
    parts: Parts = MemoryParts()
    recorded: Manifest | None = None
    if output is not None:
        parts = folder = FolderParts(output)
        recorded = folder.manifest() if resume else None
    if recorded is not None and output is not None:
        check_continues(recorded, task, probes, source, sample, settings, str(output))
        if recorded.rows is not None and not _missing(recorded, parts):
            return Scores.open(output)
        plan = go_on(task, probes, settings, recorded)
    else:
        plan = begin(task, probes, source, sample, settings)
    if isinstance(parts, FolderParts):
        parts.prepare()
        if not resume:
            parts.clear()
    if recorded is None:
        parts.write_manifest(plan.manifest)
    _measure_missing(task, plan, source, parts, progress)
    manifest = completed(plan.manifest, parts)
    parts.write_manifest(manifest)
    return Scores(parts, manifest)


def _measure_missing(task: Task, plan: Plan, source: Source, parts: Parts, progress: bool) -> None:
    """Measure and write every part that is not there."""
    runs = _missing(plan.manifest, parts)
    total = None if plan.manifest.length is None else sum((stop or 0) - start for start, stop in runs)
    measuring = Measuring(plan.engine, source, plan.manifest)
    with phase("scoring", total, show=progress) as bar, frozen(task.model):
        for start, stop in runs:
            for number, table in measuring.parts(start, stop, bar.advance):
                parts.write(number, table)


def _missing(manifest: Manifest, parts: Parts) -> list[tuple[int, int | None]]:
    length = manifest.length if manifest.rows is None else manifest.rows
    return missing_runs(parts.finished(), length, manifest.part_rows)


def completed(manifest: Manifest, parts: Parts) -> Manifest:
    """The manifest with what the parts hold, those of an earlier, interrupted run included."""
    rows = failures = 0
    listed: list[int] = []
    for number in sorted(parts.finished()):
        table = parts.read(number, ["index", "influence"])
        rows += table.num_rows
        failed = table.column("index").filter(table.column("influence").is_null()).to_numpy()
        failures += len(failed)
        listed += failed[: LISTED_FAILURES - len(listed)].tolist()
    if failures == rows:
        raise ScoringError(
            f"the loss or its derivative is not finite for any of the {rows} samples; look at the samples, and at the "
            "parameters of the checkpoints"
        )
    if failures:
        _log.warning(
            "%d of %d samples have a loss or derivative that is not finite (%s%s); their scores are null, and "
            "Scores.failed lists them",
            failures,
            rows,
            ", ".join(map(str, listed[:5])),
            ", ..." if failures > 5 else "",
        )
    return manifest.completed(rows, failures, tuple(listed))
