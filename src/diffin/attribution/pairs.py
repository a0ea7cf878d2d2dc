"""From a training, a dataset and Q queries to the samples that helped and harmed each of them most."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffin.attribution.collecting import Collecting
from diffin.attribution.directions import build_directions, clear_directions
from diffin.attribution.queries import ask
from diffin.attribution.replayed import replayed
from diffin.attribution.result import Attribution
from diffin.attribution.store import Store
from diffin.errors import DatasetError, DiffinError, ScoringError
from diffin.estimators import ProbingEstimator, Replay, default
from diffin.scoring.plan import BatchSize
from diffin.sources import Collate, open_source
from diffin.task import Task, refuse_coupled
from diffin.trajectory import Trajectory
from diffin.trajectory.store import MANIFEST as RECORDING

if TYPE_CHECKING:
    from diffin.estimators import Estimator

_GRADIENT_BATCH = 256
_DIRECTIONS = "directions"


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
    refuse_coupled(task, "attribution to single queries")
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
    run = Collecting(task, train, queries, store, there, top, matrix, batch_size, progress)
    if isinstance(estimator, Replay):
        if parameters is not None:
            raise DiffinError(
                "parameters=: Replay follows the whole training; pass parameters=None, or another estimator"
            )
        return replayed(run, estimator, trajectory, resume)
    if not isinstance(estimator, ProbingEstimator):
        raise DiffinError(f"estimator={estimator!r}: pass an instance, e.g. diffin.Unrolled() or diffin.TracIn()")
    directions = build_directions(
        task, trajectory, train, queries, estimator=estimator, parameters=parameters,
        output=None if store.path is None else store.path / _DIRECTIONS, progress=progress,
        batch_size=_GRADIENT_BATCH if batch_size == "auto" else min(batch_size, _GRADIENT_BATCH),
    )  # fmt: skip
    return run.measured(directions)


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
