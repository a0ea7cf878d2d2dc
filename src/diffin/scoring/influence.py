"""From trainings and a dataset to the influence of every sample."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffin.derivatives.gradient import SampleSet
from diffin.errors import DatasetError, DiffinError, ScoringError
from diffin.probes import clear_probes
from diffin.sample import Sample
from diffin.scoring.columns import Rows, to_table
from diffin.scoring.engines import EngineLike, Local, Torchrun, chosen
from diffin.scoring.manifest import Manifest
from diffin.scoring.plan import BatchSize, Derivatives
from diffin.scoring.run import PART_ROWS, completed, score_probes
from diffin.scoring.scores import Scores
from diffin.scoring.sink import FolderParts, MemoryParts, Parts
from diffin.sources import Collate, open_source
from diffin.task import Task
from diffin.trajectory import Trajectory

if TYPE_CHECKING:
    from diffin.estimators import Estimator, Replay

_GRADIENT_BATCH = 256
_PROBES = "probes"
_REPLAY = "replay"


def score(
    task: Task,
    trajectory: Trajectory | Sequence[Trajectory],
    train_dataset: Any,
    *,
    query: Any = None,
    estimator: Estimator | None = None,
    derivatives: Derivatives = "auto",
    batch_size: BatchSize = "auto",
    parameters: Sequence[str] | str | None = None,
    output: str | Path | None = None,
    resume: bool = True,
    progress: bool = True,
    workers: int = 0,
    collate: Collate | None = None,
    engine: EngineLike = "local",
) -> Scores:
    """What training on each sample did to the loss of the query.

    Builds the probes (:func:`diffin.build_probes`) and measures them on every sample (:func:`diffin.score_probes`);
    :class:`diffin.Replay` needs no probes.

    Args:
        task: model and loss; the model is read, never written.
        trajectory: what training left behind. Several trainings of the same model on the same data, in other orders or from
            other initial parameters, are scored one after another: the influence is the mean, and the standard error is
            over them.
        train_dataset: the samples to score: anything :func:`diffin.sources.open_source` reads.
        query: the samples whose mean loss is asked about, usually a clean validation set.
        estimator: what to estimate with; ``None`` for :func:`diffin.estimators.default`, the most accurate for the run.
        derivatives: see :func:`diffin.score_probes`. `Replay` takes its own, batch by batch as the training did.
        batch_size: samples measured at once; ``"auto"`` to choose it.
        parameters: shell-style name patterns of the parameters to study; ``None`` for all that training could change.
        output: a folder for the scores and, in ``probes/``, the probes (of several trainings, in ``run-0/`` and so on);
            ``None`` to keep the scores in memory.
        resume: go on with what ``output`` holds; ``False`` replaces it.
        progress: show the phases, with the time left.
        workers: processes that read the data.
        collate: makes a batch of a list of samples; ``None`` for the default.
        engine: who measures, see :func:`diffin.score_probes`. Under ``"torchrun"`` the processes build the probes together,
            too; with ``"ray"`` this one builds them. `Replay` has one process.

    Returns:
        Influence of every sample, in the order of the dataset: negative helps, positive harms.

    Raises:
        DiffinError: see :func:`diffin.build_probes` and :func:`diffin.score_probes`.
    """
    from diffin.estimators import ProbingEstimator, Replay, build_probes, default

    runs = _trajectories(trajectory)
    by = chosen(engine)
    by.check(open_source(train_dataset, collate=collate), output)
    if len(runs) > 1:
        if output is not None:
            with by.ranks(task.device) as ranks:
                ranks.once(partial(_make_way, FolderParts(output), resume))
        scores = [
            score(
                task, run, train_dataset, query=query, estimator=estimator, derivatives=derivatives,
                batch_size=batch_size, parameters=parameters, resume=resume, progress=progress, workers=workers,
                collate=collate, engine=by, output=None if output is None else Path(output) / f"run-{number}",
            )
            for number, run in enumerate(runs)
        ]  # fmt: skip
        if output is None:
            return combined(scores)

        def combine() -> None:
            combined(scores, output)

        with by.ranks(task.device) as ranks:
            ranks.once(combine)
        return Scores.open(output)
    trajectory = runs[0]
    estimator = default(trajectory) if estimator is None else estimator
    if isinstance(estimator, Replay):
        if not isinstance(by, Local):
            raise DiffinError(
                f"engine={by.name!r}: Replay walks through the training in one process; pass engine='local', or "
                "estimator=diffin.Unrolled()"
            )
        if parameters is not None:
            raise DiffinError(
                "parameters=: Replay follows the whole training; pass parameters=None, or another estimator"
            )
        return _replayed(task, trajectory, train_dataset, query, estimator, output, resume, progress, collate)
    if not isinstance(estimator, ProbingEstimator):
        raise DiffinError(f"estimator={estimator!r}: pass an instance, e.g. diffin.Unrolled() or diffin.TracIn()")
    folder = None if output is None else Path(output) / _PROBES
    if folder is not None and not resume:
        with by.ranks(task.device) as ranks:
            ranks.once(partial(clear_probes, folder))
    probes = build_probes(
        task, trajectory, train_dataset, query=query, estimator=estimator, parameters=parameters, output=folder,
        batch_size=_GRADIENT_BATCH if batch_size == "auto" else min(batch_size, _GRADIENT_BATCH), workers=workers,
        collate=collate, progress=progress, engine="torchrun" if isinstance(by, Torchrun) else "local",
    )  # fmt: skip
    return score_probes(
        task, probes, train_dataset, derivatives=derivatives, batch_size=batch_size, output=output, resume=resume,
        progress=progress, workers=workers, collate=collate, engine=by,
    )  # fmt: skip


def _trajectories(given: object) -> list[Trajectory]:
    runs = []
    for run in given if isinstance(given, list | tuple) else [given]:
        if not isinstance(run, Trajectory):
            raise DiffinError(f"trajectory is a {type(run).__name__}: pass diffin.Trajectory.open(folder), or several")
        runs.append(run)
    if not runs:
        raise DiffinError("trajectory=[]: pass one trajectory or more")
    return runs


def _replayed(
    task: Task,
    trajectory: Trajectory,
    train_dataset: Any,
    query: Any,
    estimator: Replay,
    output: str | Path | None,
    resume: bool,
    progress: bool,
    collate: Collate | None,
) -> Scores:
    """Walk the training backwards, and write what that says of every sample as scores."""
    from diffin.estimators.build import query_reader
    from diffin.estimators.replay import forget
    from diffin.rerun import Rerun

    if query is None:
        raise DatasetError("query=None: Replay needs the samples whose loss is asked about, e.g. a validation set")
    train, asked = open_source(train_dataset, collate=collate), open_source(query, collate=collate)
    usable = Sample.of(asked).usable(task)
    if usable is None:
        raise DatasetError("no loss of the query set is finite; look at its samples and the model")
    rerun = Rerun(task, trajectory, train)
    queries = [SampleSet(query_reader(task, asked, _GRADIENT_BATCH), "the query set")]
    sample = Sample.of(train).digest()
    metadata = {
        "estimator": estimator.describe(),
        "terms": "parts",
        "dataset_size": trajectory.dataset_size,
        "query_size": asked.length,
        "total_steps": trajectory.total_steps,
        "optimizer": rerun.optimizer.kind,
    }
    known = [metadata, sample, Sample.of(asked).digest(), rerun.identity()]
    identity = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]
    parts: Parts = MemoryParts()
    folder: Path | None = None
    if output is not None:
        parts = at = FolderParts(output)
        there = at.manifest() if resume else None
        if there is not None and there.probes["digest"] != identity:
            raise ScoringError(
                f"output={str(output)!r} holds scores of another run, query or data; pass another output, or resume=False to "
                "replace them"
            )
        if there is not None and there.rows is not None:
            return Scores.open(output)
        at.prepare()
        folder = at.path / _REPLAY
        if not resume:
            at.clear()
            forget(folder)
    found = estimator.walk(rerun, queries, folder=folder, identity=identity, progress=progress)
    steps = list(found.starts)
    manifest = Manifest(
        probes={
            "digest": identity, "steps": steps, "counts": [1] * len(steps),
            "metadata": {**metadata, "replay_distance": found.distance},
        },
        derivatives={"name": "replay"},
        batch_size=0,
        part_rows=PART_ROWS,
        length=trajectory.dataset_size,
        sample=sample,
        device=str(task.device),
        terms="parts",
    )  # fmt: skip
    parts.write_manifest(manifest)
    terms = found.terms[0]
    # A sample that was never in a batch has no loss; its influence is known to be nothing.
    losses = np.broadcast_to(found.mean_losses[:, None], terms.shape)
    for number, start in enumerate(range(0, len(terms), PART_ROWS)):
        rows = slice(start, start + PART_ROWS)
        index = np.arange(start, min(start + PART_ROWS, len(terms)), dtype=np.int64)
        parts.write(number, to_table(Rows(index, losses[rows], terms[rows]), steps, "parts"))
    manifest = completed(manifest, parts)
    parts.write_manifest(manifest)
    if folder is not None:
        forget(folder)
    return Scores(parts, manifest)


def combined(scores: Sequence[Scores], output: str | Path | None = None) -> Scores:
    """The mean of scores of several trainings, with the standard error over them.

    Args:
        scores: of the same samples, two or more.
        output: a folder for the result; ``None`` to keep it in memory.

    Raises:
        ScoringError: they are not of as many samples, or the folder holds something else.
    """
    lengths = sorted({len(one) for one in scores})
    described = [one.metadata for one in scores]
    if len(scores) < 2 or len(lengths) > 1 or len({one["sample"] for one in described}) > 1:
        raise ScoringError(
            f"scores of {len(scores)} trainings, on {lengths} samples, cannot be averaged; pass two or more of the same data"
        )
    digests = [one["probes"]["digest"] for one in described]
    first = described[0]["probes"]["metadata"]
    manifest = Manifest(
        probes={
            "digest": hashlib.sha256("".join(digests).encode()).hexdigest()[:16],
            "steps": list(range(len(scores))),
            "counts": [1] * len(scores),
            "metadata": {**first, "terms": "runs", "runs": [one["probes"] for one in described]},
        },
        derivatives=described[0]["derivatives"],
        batch_size=described[0]["batch_size"],
        part_rows=PART_ROWS,
        length=lengths[0],
        sample=described[0]["sample"],
        self_check=described[0]["self_check"],
        device=described[0]["device"],
        terms="runs",
    )
    parts: Parts = MemoryParts()
    if output is not None:
        parts = folder = FolderParts(output)
        _make_way(folder, resume=True)
        folder.prepare()
        folder.clear()
    parts.write_manifest(manifest)
    for number, start in enumerate(range(0, lengths[0], PART_ROWS)):
        rows = slice(start, start + PART_ROWS)
        terms = np.stack([one.influence[rows] for one in scores], axis=1) / len(scores)
        losses = np.stack([one.loss[rows] for one in scores], axis=1)
        index = np.arange(start, start + len(terms), dtype=np.int64)
        parts.write(number, to_table(Rows(index, losses, terms), manifest.steps, "runs"))
    manifest = completed(manifest, parts)
    parts.write_manifest(manifest)
    return Scores(parts, manifest)


def _make_way(folder: FolderParts, resume: bool) -> None:
    """Refuse to put scores of several trainings in the place of others; without ``resume``, remove those."""
    if not resume:
        folder.clear()
        return
    there = folder.manifest()
    if there is not None and there.terms != "runs":
        raise ScoringError(
            f"output={str(folder.path)!r} holds scores that are not of several trainings; pass another output, or "
            "resume=False to replace them"
        )
