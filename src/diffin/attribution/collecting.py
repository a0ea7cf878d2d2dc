"""Measuring every sample, part by part, and keeping the strongest."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from diffin.attribution.directions import Directions
from diffin.attribution.engine import Engine
from diffin.attribution.queries import Queries
from diffin.attribution.result import Attribution
from diffin.attribution.store import Manifest, Part, Store
from diffin.attribution.tops import Tops, merged
from diffin.errors import DatasetError, ScoringError
from diffin.memory import power_of_two
from diffin.progress import Phase, phase
from diffin.sample import Sample
from diffin.scoring.columns import Floats
from diffin.scoring.plan import BatchSize
from diffin.scoring.sink import missing_runs
from diffin.sources import Indices, Source
from diffin.task import Task, frozen

_log = logging.getLogger(__name__)

_PART_ROWS, _PART_NUMBERS = 4096, 2**22

Read = Callable[[int, int | None, Phase], Iterator[tuple[Indices, Floats]]]
"""Indices of the samples from one position to another (``None`` for the end), and their influence on every query."""


class Collecting:
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

    def collected(self, manifest: Manifest, read: Read) -> Attribution:
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
