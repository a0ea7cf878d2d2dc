"""From a training to what each of its samples did to its own loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from diffin.derivatives.gradient import SampleSet
from diffin.derivatives.own import OwnExact
from diffin.errors import DiffinError
from diffin.estimators import DiffIn, ProbingEstimator, TracIn, Unrolled, build_probes, default
from diffin.estimators.build import Draws
from diffin.estimators.self_influence import SelfInfluence
from diffin.estimators.self_unrolled import SelfUnrolled
from diffin.probes import ProbeSet, clear_probes
from diffin.scoring import Scores, score_probes
from diffin.scoring.engines import EngineLike, Local, Torchrun, chosen
from diffin.scoring.plan import BatchSize, Derivatives
from diffin.sources import Collate, open_source
from diffin.task import Task, refuse_coupled
from diffin.trajectory import Trajectory

_GRADIENT_BATCH = 256
_PROBES = "probes"


def self_influence(
    task: Task,
    trajectory: Trajectory,
    train_dataset: Any,
    *,
    estimator: Unrolled | DiffIn | TracIn | None = None,
    rank: int | None = None,
    exact: bool = False,
    parameters: Sequence[str] | str | None = None,
    batch_size: BatchSize = "auto",
    output: str | Path | None = None,
    resume: bool = True,
    progress: bool = True,
    workers: int = 0,
    collate: Collate | None = None,
    engine: EngineLike = "local",
) -> Scores:
    """What training on each sample did to the loss of that sample.

    A sample that the rest of the data does not explain (a wrong label, a rarity) depends on its own presence: its
    self-influence is far from zero. Builds the probes (no query is needed) and measures them on every sample, like
    :func:`diffin.score`, at two forward and backward passes a sample and checkpoint.

    Args:
        task: model and loss; the model is read, never written.
        trajectory: what training left behind.
        train_dataset: the samples to score: anything :func:`diffin.sources.open_source` reads.
        estimator: ``Unrolled()``, by segments; ``DiffIn()`` (Eq. 12 of Tan et al.); or ``TracIn()``. ``None`` for `Unrolled`,
            or `TracIn` where the optimizer's update is not known.
        rank: for `Unrolled`: how many directions the curvature is followed along, 64 by default, fewer where that would take
            more than 256 MiB. For `DiffIn`: how many eigenpairs stand for the curvature of a proxy batch, 5 by default. A
            probe is as many times as large as the model.
        exact: for `DiffIn` and `TracIn`: take a product with the curvature, and one with the sample's own Hessian, for every
            sample instead. Slow: to check a few samples by.
        parameters: shell-style name patterns of the parameters to study; ``None`` for all that training could change.
        batch_size: samples measured at once; ``"auto"`` to choose it.
        output: a folder for the scores and, in ``probes/``, the probes; ``None`` to keep the scores in memory.
        resume: go on with what ``output`` holds; ``False`` replaces it.
        progress: show the phases, with the time left.
        workers: processes that read the data.
        collate: makes a batch of a list of samples; ``None`` for the default.
        engine: who measures, see :func:`diffin.score`.

    Returns:
        Self-influence of every sample, in the order of the dataset: effect of training on it on its own loss. Negative says
        that training on the sample lowers its loss, the usual case; `TracIn` can say nothing else.

    Raises:
        DiffinError: another estimator was passed; and see :func:`diffin.build_probes` and :func:`diffin.score_probes`.
    """
    refuse_coupled(task, "self-influence")
    by = chosen(engine)
    by.check(open_source(train_dataset, collate=collate), output)
    if exact and not isinstance(by, Local):
        raise DiffinError(
            f"engine={by.name!r}: the exact mode is for a few samples, in one process; pass engine='local'"
        )
    own = asking_itself(default(trajectory) if estimator is None else estimator, rank, exact)
    folder = None if output is None else Path(output) / _PROBES
    if folder is not None and not resume:
        with by.ranks(task.device) as ranks:
            ranks.once(partial(clear_probes, folder))
    size = _GRADIENT_BATCH if batch_size == "auto" else min(batch_size, _GRADIENT_BATCH)
    probes = build_probes(
        task, trajectory, train_dataset, estimator=own, parameters=parameters, output=folder, batch_size=size,
        workers=workers, collate=collate, progress=progress, engine="torchrun" if isinstance(by, Torchrun) else "local",
    )  # fmt: skip
    derivatives: Derivatives = "auto"
    if exact:
        derivatives = OwnExact(curvature_sets(probes, train_dataset, batch_size=size, workers=workers, collate=collate))
    return score_probes(
        task, probes, train_dataset, derivatives=derivatives, batch_size=batch_size, output=output, resume=resume,
        progress=progress, workers=workers, collate=collate, engine=by,
    )  # fmt: skip


def asking_itself(estimator: object, rank: int | None = None, exact: bool = False) -> ProbingEstimator:
    """What builds the probes of self-influence.

    Args:
        estimator: whose query becomes the sample itself.
        rank: see :func:`self_influence`.
        exact: build them for the exact mode.

    Raises:
        DiffinError: self-influence is not known for the estimator, or it has no exact mode.
    """
    if isinstance(estimator, DiffIn | TracIn):
        return SelfInfluence(estimator, exact=exact) if rank is None else SelfInfluence(estimator, rank, exact)
    if not isinstance(estimator, Unrolled):
        raise DiffinError(
            f"estimator={estimator!r}: self-influence is known for diffin.Unrolled(), diffin.DiffIn() and diffin.TracIn(); "
            "pass one of them"
        )
    if exact:
        raise DiffinError(
            "exact=True is known for diffin.DiffIn() and diffin.TracIn(); for diffin.Unrolled(), ask about some samples as "
            "queries of their own with diffin.attribute(..., estimator=diffin.Unrolled(propagation='segments'))"
        )
    return SelfUnrolled(estimator) if rank is None else SelfUnrolled(estimator, rank)


def curvature_sets(
    probes: ProbeSet,
    train_dataset: Any,
    *,
    batch_size: int = _GRADIENT_BATCH,
    workers: int = 0,
    collate: Collate | None = None,
) -> Callable[[tuple[int, ...]], SampleSet]:
    """The curvature sets that probes for the exact mode were built from, by what names them there.

    Args:
        probes: of ``SelfInfluence(..., exact=True)``.
        train_dataset: what they were built from.
        batch_size: samples a pass.
        workers: processes that read the data.
        collate: makes a batch of a list of samples; ``None`` for the default.
    """
    train = open_source(train_dataset, collate=collate, workers=workers)
    draw = Draws(train, train.length or int(probes.metadata["dataset_size"]), batch_size)
    return lambda curvature: draw(curvature[0] or None, *curvature[1:])
