"""From a training, a dataset and Q queries to the samples that helped and harmed each of them most."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffin.attribution.directions import Directions, build_directions, clear_directions
from diffin.attribution.engine import Engine
from diffin.attribution.queries import Queries, ask
from diffin.attribution.result import Attribution
from diffin.attribution.store import Manifest, Part, Store
from diffin.attribution.tops import Tops, merged
from diffin.errors import DatasetError, DiffinError, ScoringError
from diffin.estimators import ProbingEstimator, Replay, default
from diffin.memory import power_of_two
from diffin.progress import Phase, phase
from diffin.sample import Sample
from diffin.scoring.columns import Floats
from diffin.scoring.plan import BatchSize
from diffin.scoring.sink import missing_runs
from diffin.sources import Collate, Indices, Source, open_source
from diffin.task import Task, frozen
from diffin.trajectory import Trajectory
from diffin.trajectory.store import MANIFEST as RECORDING

if TYPE_CHECKING:
    from diffin.estimators import Estimator

_log = logging.getLogger(__name__)

_GRADIENT_BATCH = 256
_PART_ROWS, _PART_NUMBERS = 4096, 2**22
_REPLAY_BYTES = 2**30
_DIRECTIONS, _REPLAY = "directions", "replay"


def attribute(
    task: Task,
    trajectory: Trajectory,
    train_dataset: Any,
    query: Any,
    *,
    estimator: Estimator | None = None,
    top: int = 20,
    groups: Sequence[int] | Any | None = None,
    parameters: Sequence[str] | str | None = None,
    batch_size: BatchSize = "auto",
    output: str | Path | None = None,
    resume: bool = True,
    matrix: bool = False,
    progress: bool = True,
    workers: int = 0,
    collate: Collate | None = None,
) -> Attribution:
    """For every query sample, the training samples that helped it most and those that harmed it most.

    Every query is a question of its own; :func:`diffin.score` asks about the mean loss of all of them. First a direction for
    each query is built at the states of the training, on disk; then the per-sample gradients of the training set, formed
    layer by layer, are multiplied with all of them. Of N x Q influences only the strongest are kept.

    Args:
        task: model and loss; the model is read, never written.
        trajectory: what training left behind.
        train_dataset: the samples to attribute to: anything :func:`diffin.sources.open_source` reads.
        query: Q samples, each a query of its own.
        estimator: `Unrolled`, `TracIn`, `DiffIn`, `InverseHessian` or, for few queries and samples, `Replay`; ``None`` for
            :func:`diffin.estimators.default`. `Unrolled` by segments costs the same for any number of queries; by steps,
            every query adds about a training.
        top: how many samples of either end to keep.
        groups: Int[ndarray, "Q"], a label for every query sample, e.g. its class: one query for each label, the mean loss of
            its members.
        parameters: shell-style name patterns of the parameters to study; ``None`` for all that training could change.
        batch_size: samples measured at once; ``"auto"`` to choose it.
        output: a folder for the result, the directions and, on the way, the parts; ``None`` to keep the result in memory.
        resume: go on with what ``output`` holds; ``False`` replaces it.
        matrix: write the influence of every sample on every query too, in float32; needs an ``output``.
        progress: show the phases, with the time left.
        workers: processes that read the data.
        collate: makes a batch of a list of samples; ``None`` for the default.

    Returns:
        Proponents and opponents of every query: negative influence helps, positive harms. A sample whose loss or influence
        is not finite is in no list, and named in :attr:`Attribution.failed`.

    Raises:
        DiffinError: see :func:`diffin.build_probes` and :func:`diffin.score_probes`; also an estimator that does not know
            queries, or a `Replay` of more than fits into memory.
    """
    _check(task, trajectory, query, top, batch_size, output, matrix)
    estimator = default(trajectory) if estimator is None else estimator
    train = open_source(train_dataset, collate=collate, workers=workers)
    queries = ask(open_source(query, collate=collate, workers=workers), groups, _GRADIENT_BATCH)
    store = Store(output)
    there = store.manifest() if resume else None
    if not resume:
        store.clear()
        if store.path is not None:
            clear_directions(store.path / _DIRECTIONS)
    run = _Run(task, train, queries, store, there, top, matrix, batch_size, progress)
    if isinstance(estimator, Replay):
        if parameters is not None:
            raise DiffinError(
                "parameters=: Replay follows the whole training; pass parameters=None, or another estimator"
            )
        return _replayed(run, estimator, trajectory, resume)
    if not isinstance(estimator, ProbingEstimator):
        raise DiffinError(f"estimator={estimator!r}: pass an instance, e.g. diffin.Unrolled() or diffin.TracIn()")
    directions = build_directions(
        task, trajectory, train, queries, estimator=estimator, parameters=parameters,
        output=None if store.path is None else store.path / _DIRECTIONS, progress=progress,
        batch_size=_GRADIENT_BATCH if batch_size == "auto" else min(batch_size, _GRADIENT_BATCH),
    )  # fmt: skip
    return run.measured(directions)


class _Run:
    """A question with its store, once directions are known."""

    def __init__(
        self,
        task: Task,
        train: Source,
        queries: Queries,
        store: Store,
        there: Manifest | None,
        top: int,
        matrix: bool,
        batch_size: BatchSize,
        progress: bool,
    ) -> None:
        self.task, self.train, self.queries, self.store, self.there = task, train, queries, store, there
        self.top, self.matrix, self.batch_size, self.progress = top, matrix, batch_size, progress
        self.sample = Sample.of(train)
        self.part_rows = max(1, min(_PART_ROWS, power_of_two(_PART_NUMBERS / len(queries))))

    def measured(self, directions: Directions) -> Attribution:
        """Measure what is missing."""
        engine = Engine(self.task, directions, block_rows=self.part_rows)
        size = self._size(engine)
        described = {"digest": directions.digest, "steps": list(directions.steps), "metadata": directions.metadata}
        manifest = self.manifest(described, size)

        def read(start: int, stop: int | None, bar: Phase) -> Iterator[tuple[Indices, Floats]]:
            batches = self.train.batches(size, start, stop, align=self.part_rows)
            with frozen(self.task.model):
                yield from engine.measure(batches, bar.advance)

        return self.collected(manifest, read)

    def _size(self, engine: Engine) -> int:
        """How many samples to measure at once; an interrupted run goes on with what it had."""
        if self.batch_size != "auto":
            return self.batch_size
        if self.there is not None:
            return self.there.batch_size
        usable = self.sample.usable(self.task)
        assert usable is not None  # directions were built of it
        return min(engine.batch_size(usable), self.part_rows)

    def manifest(self, directions: dict[str, Any], size: int) -> Manifest:
        plain: dict[str, Any] = json.loads(json.dumps(directions))
        return Manifest(
            directions=plain,
            queries=tuple(self.queries.labels.tolist()),
            grouped=self.queries.grouped,
            top=self.top,
            matrix=self.matrix,
            batch_size=size,
            part_rows=self.part_rows,
            length=self.train.length,
            sample=self.sample.digest(),
            device=str(self.task.device),
        )

    def collected(self, manifest: Manifest, read: Any) -> Attribution:
        """Write every part that is not there, and make the result of all of them."""
        store = self.store
        if self.there is not None:
            differences = self.there.differences(manifest)
            if differences:
                raise ScoringError(
                    f"output={str(store.path)!r} holds another attribution; what differs: {'; '.join(differences)}. Pass "
                    "another output, or resume=False to replace it"
                )
            if self.there.rows is not None and store.path is not None:
                store.tidy()
                return Attribution.open(store.path)
        else:
            store.clear()
        store.prepare()
        store.write_manifest(manifest)
        runs = missing_runs(store.finished(), manifest.length, manifest.part_rows)
        total = None if manifest.length is None else sum((stop or 0) - start for start, stop in runs)
        with phase("measuring", total, show=self.progress) as bar:
            for start, stop in runs:
                # To its end, rather than to its length, so that an iterable that holds more than it says is noticed.
                until = None if stop == manifest.length else stop
                number, position = start // manifest.part_rows, start
                for index, influence in _parts_of(read(start, until, bar), manifest.part_rows):
                    self._write(number, index, influence)
                    number += 1
                    position += len(index)
                if stop is not None and position < stop:
                    raise DatasetError(
                        f"the dataset ended after {position} samples and should hold at least {stop}; pass one whose length "
                        "does not change"
                    )
        return self._finished(manifest)

    def _write(self, number: int, index: Indices, influence: Floats) -> None:
        finite = np.logical_and.reduce(np.isfinite(influence), axis=1)
        if self.matrix:
            self.store.write_matrix(number, index, np.where(finite[:, None], influence, np.nan))
        tops = Tops.of(index[finite], influence[finite], self.top) if finite.any() else None
        self.store.write(number, Part(tops, len(index), tuple(index[~finite].tolist())))

    def _finished(self, manifest: Manifest) -> Attribution:
        tops: Tops | None = None
        rows = 0
        failed: list[int] = []
        for number in sorted(self.store.finished()):
            part = self.store.read(number)
            rows += part.rows
            failed += part.failed
            if part.tops is not None:
                tops = part.tops if tops is None else merged([tops, part.tops], self.top)
        if tops is None:
            raise ScoringError(
                f"the loss or its derivative is not finite for any of the {rows} samples; look at the samples, and at the "
                "parameters of the checkpoints"
            )
        if failed:
            _log.warning(
                "%d of %d samples have a loss or derivative that is not finite (%s%s); they are in no list, and "
                "Attribution.failed names them",
                len(failed), rows, ", ".join(map(str, failed[:5])), ", ..." if len(failed) > 5 else "",
            )  # fmt: skip
        manifest = manifest.completed(rows, failed)
        self.store.finish(manifest, tops)
        return Attribution(tops, manifest, self.store.path)


def _parts_of(measured: Iterable[tuple[Indices, Floats]], part_rows: int) -> Iterator[tuple[Indices, Floats]]:
    """What was measured, cut at the multiples of ``part_rows``; the last part may be short."""
    pending: list[tuple[Indices, Floats]] = []
    held = 0
    for index, influence in measured:
        while len(index):
            count = min(part_rows - held, len(index))
            pending.append((index[:count], influence[:count]))
            index, influence, held = index[count:], influence[count:], held + count
            if held == part_rows:
                yield _joined(pending)
                pending, held = [], 0
    if pending:
        yield _joined(pending)


def _joined(pieces: list[tuple[Indices, Floats]]) -> tuple[Indices, Floats]:
    return np.concatenate([index for index, _ in pieces]), np.concatenate([influence for _, influence in pieces])


def _replayed(run: _Run, estimator: Replay, trajectory: Trajectory, resume: bool) -> Attribution:
    """Walk the training backwards once, with the adjoints of all queries."""
    from diffin.estimators.replay import forget
    from diffin.rerun import Rerun
    from diffin.rerun.walk import stretches

    if run.sample.usable(run.task) is None or Sample.of(run.queries.source).usable(run.task) is None:
        raise DatasetError(
            "no loss of the training set or of the query set is finite; look at the samples and the model"
        )
    rerun = Rerun(run.task, trajectory, run.train)
    count = trajectory.dataset_size or 0
    needed = len(run.queries) * count * len(stretches(rerun)) * 8
    if needed > _REPLAY_BYTES:
        raise ScoringError(
            f"Replay of {len(run.queries)} queries about {count} samples holds {needed / 2**30:.1f} GiB, and "
            f"{_REPLAY_BYTES / 2**30:.0f} are allowed; ask fewer queries at once, or groups of them, or pass "
            "diffin.Unrolled()"
        )
    metadata = {
        "estimator": estimator.describe(), "dataset_size": count, "total_steps": trajectory.total_steps,
        "optimizer": rerun.optimizer.kind,
    }  # fmt: skip
    known = [metadata, run.sample.digest(), run.queries.digest(), rerun.identity()]
    identity = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]
    folder = None if run.store.path is None else run.store.path / _REPLAY
    if folder is not None and not resume:
        forget(folder)
    manifest = run.manifest({"digest": identity, "steps": [], "metadata": metadata}, 0)

    def read(start: int, stop: int | None, bar: Phase) -> Iterator[tuple[Indices, Floats]]:
        stop = count if stop is None else stop
        if not found:
            found.append(
                estimator.walk(
                    rerun, run.queries.sets(), folder=folder, identity=identity, progress=run.progress
                ).influence
            )
        for first in range(start, stop, run.part_rows):
            last = min(first + run.part_rows, stop)
            bar.advance(last - first)
            yield np.arange(first, last, dtype=np.int64), found[0][:, first:last].T

    found: list[Floats] = []
    result = run.collected(manifest, read)
    if folder is not None:
        forget(folder)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    return result


def _check(
    task: object,
    trajectory: object,
    query: object,
    top: int,
    batch_size: object,
    output: str | Path | None,
    matrix: bool,
) -> None:
    if not isinstance(task, Task):
        raise DiffinError(f"task is a {type(task).__name__}: pass e.g. diffin.tasks.Classification(model)")
    if not isinstance(trajectory, Trajectory):
        raise DiffinError(f"trajectory is a {type(trajectory).__name__}: pass diffin.Trajectory.open(folder)")
    if query is None:
        raise DatasetError("query=None: pass the samples that are asked about, each of them a query")
    if isinstance(top, bool) or not isinstance(top, int) or top < 1:
        raise ScoringError(f"top={top!r}; pass how many samples of either end to keep, 1 or more")
    if batch_size != "auto" and (not isinstance(batch_size, int) or batch_size < 1):
        raise ScoringError(f"batch_size={batch_size!r}; pass 'auto' or the number of samples to measure at once")
    if matrix and output is None:
        raise ScoringError("matrix=True needs a folder to write it to; pass output=")
    if output is not None and (Path(output) / RECORDING).exists():
        raise ScoringError(f"output={str(output)!r} is a recorded training; pass another folder for the attribution")
