"""Replay for several queries: one walk back through the training says everything about all of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

import numpy as np

from diffin.attribution.collecting import Collecting
from diffin.attribution.result import Attribution
from diffin.errors import DatasetError, ScoringError
from diffin.estimators import Replay
from diffin.estimators.replay import forget
from diffin.progress import Phase
from diffin.rerun import Rerun
from diffin.rerun.walk import stretches
from diffin.sample import Sample
from diffin.scoring.columns import Floats
from diffin.sources import Indices
from diffin.trajectory import Trajectory

_REPLAY_BYTES = 2**30
_REPLAY = "replay"


def replayed(run: Collecting, estimator: Replay, trajectory: Trajectory, resume: bool) -> Attribution:
    """Walk the training backwards once, with the adjoints of all queries."""
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
