"""From a training to the labels that are probably wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from diffin.actions.checks import check_run, end_of
from diffin.actions.clean.fusion import Fused, fuse, gather
from diffin.actions.clean.single import SIGNALS, forward_signals, own_margin, together
from diffin.actions.clean.smoothing import Reference
from diffin.actions.clean.suspects import Suspects
from diffin.errors import ScoringError
from diffin.estimators import DiffIn, Estimator, TracIn, Unrolled
from diffin.own_influence import self_influence as run_self_influence
from diffin.sample import Sample
from diffin.scoring.columns import Floats
from diffin.scoring.influence import score
from diffin.scoring.plan import BatchSize
from diffin.signals import Signals, observe
from diffin.signals.gradient_norms import gradient_norms
from diffin.signals.signals import Bools
from diffin.sources import Collate, open_source
from diffin.task import Task
from diffin.trajectory import Trajectory

_FEWEST = 10


def clean(
    task: Task,
    trajectory: Trajectory,
    train_dataset: Any,
    *,
    query: Any = None,
    evidence: Literal["auto"] | Sequence[str] = "auto",
    self_influence: Sequence[TracIn | DiffIn | Unrolled] = (),
    influence: Estimator | None = None,
    batch_size: BatchSize = "auto",
    collate: Collate | None = None,
    workers: int = 0,
    progress: bool = True,
) -> Suspects:
    """The probability of every label to be wrong, and what it should be.

    Needs forward passes only: at each checkpoint, what the features of the net say of a sample's class when its own label is
    left out. Single signals are returned beside it, those of derivatives if asked for.

    Args:
        task: a :class:`diffin.tasks.Classification`; the model is read, never written.
        trajectory: what training left behind.
        train_dataset: the samples that were trained on: anything :func:`diffin.sources.open_source` reads.
        query: held-out samples whose labels are right, which help to tell noise from likeness of classes; or ``None``.
        evidence: ``"auto"``, or names of single signals: then samples are ranked by these alone (normal scores of ranks,
            summed), and the ranks keep the probabilities that the fused evidence has for them.
        self_influence: estimators of self-influence to add as signals: two passes forward and back a sample and checkpoint
            each. `TracIn` brings the norms of gradients, `Unrolled` the loss without the sample.
        influence: an estimator of the influence on ``query`` to add as a signal.
        batch_size: samples measured at once; ``"auto"`` to choose it.
        collate: makes a batch of a list of samples; ``None`` for the default.
        workers: processes that read the data.
        progress: show the phases, with the time left.

    Raises:
        TaskError: the task is not a classification, or the targets are not class numbers.
        TrajectoryError: the trajectory has no state after its first step, or belongs to another model.
        DatasetError: the training set is not of the size of the run's.
        ScoringError: ``evidence`` names a signal that is not computed; ``influence`` comes without a query; or fewer than ten
            samples have a finite loss.
    """
    train = open_source(train_dataset, collate=collate)
    check_run(task, trajectory, train)
    names = _wanted(evidence, self_influence, influence, query)
    options: dict[str, Any] = {"batch_size": batch_size, "collate": collate, "workers": workers, "progress": progress}
    signals = observe(task, trajectory, train_dataset, hidden=True, **options)
    usable = _usable(signals)
    fused = _fused(signals, usable, None if query is None else observe(task, trajectory, query, hidden=True, **options))
    columns = forward_signals(signals)
    columns["neighbours"] = _spread(
        np.take_along_axis(fused.neighbours, signals.labels[usable, None], axis=1)[:, 0], usable
    )
    columns["left_out"] = _spread(own_margin(fused.left_out, signals.labels[usable]), usable)
    for estimator in self_influence:
        found = run_self_influence(task, trajectory, train_dataset, estimator=estimator, **options)
        columns[f"self_influence_{estimator.name}"] = found.influence
        if isinstance(estimator, TracIn):
            rates = [float(np.mean(c.group_learning_rates or (1.0,))) for c in trajectory.checkpoints]
            columns["gradient_norm"] = gradient_norms(found.terms, rates).mean(axis=1)
        if isinstance(estimator, Unrolled):
            columns["loss_without"] = signals.final_loss - found.influence
    if influence is not None:
        columns["query_influence"] = score(
            task, trajectory, train_dataset, query=query, estimator=influence, **options
        ).influence
    details = {
        "evidence": "auto" if names is None else names,
        "query": query is not None,
        "run": end_of(trajectory),
        "train": Sample.of(train).digest(),
        "steps": list(signals.steps),
        "state_weights": {str(step): weight for step, weight in fused.state_weights.items()},
    }
    return _suspects(
        signals, fused, usable, {name: columns[name] for name in SIGNALS if name in columns}, names, details
    )


def _wanted(evidence: Any, own: Sequence[Any], influence: Estimator | None, query: Any) -> list[str] | None:
    if influence is not None and query is None:
        raise ScoringError("influence= is asked for without a query; pass query= held-out samples, or leave it out")
    if evidence == "auto":
        return None
    names = [evidence] if isinstance(evidence, str) else list(evidence)
    there = {name for name in SIGNALS if not name.startswith(("self_", "gradient_", "loss_without", "query_"))}
    for estimator in own:
        there |= {f"self_influence_{estimator.name}"}
        there |= {"gradient_norm"} if isinstance(estimator, TracIn) else set()
        there |= {"loss_without"} if isinstance(estimator, Unrolled) else set()
    there |= {"query_influence"} if influence is not None else set()
    for name in names:
        if name not in there:
            raise ScoringError(
                f"evidence: no signal {name!r} is computed; pass some of "
                f"{', '.join(known for known in SIGNALS if known in there)} (others need self_influence= or influence=), or "
                "'auto' for all evidence"
            )
    if not names:
        raise ScoringError("evidence is empty; pass 'auto' or names of signals")
    return names


def _usable(signals: Signals) -> Bools:
    usable: Bools = np.ones(len(signals), dtype=bool)
    usable[signals.failed] = False
    for features in signals.hidden.values():
        usable &= np.isfinite(features).all(axis=1)
    if int(usable.sum()) < _FEWEST:
        raise ScoringError(
            f"{int(usable.sum())} of {len(signals)} samples have a finite loss at every state; cleaning needs {_FEWEST} "
            "or more"
        )
    return usable


def _fused(signals: Signals, usable: Bools, query: Signals | None) -> Fused:
    reference: dict[int, Reference] = {}
    if query is not None:
        right = _usable(query)
        targets = np.eye(signals.classes)[query.labels[right]]
        reference = {step: Reference(features[right], targets) for step, features in query.hidden.items()}
    hidden = {step: features[usable] for step, features in signals.hidden.items()}
    return fuse(gather(hidden, signals.margin[usable], signals.labels[usable], signals.classes, reference))


def _suspects(
    signals: Signals,
    fused: Fused,
    usable: Bools,
    columns: dict[str, Floats],
    names: list[str] | None,
    details: dict[str, Any],
) -> Suspects:
    labels = signals.labels[usable]
    rows = np.arange(len(labels))
    others = fused.posterior.copy()
    others[rows, labels] = -1.0
    suggested = signals.labels.copy()
    suggested[usable] = others.argmax(axis=1)
    doubt = fused.doubt if names is None else together({name: col[usable] for name, col in columns.items()}, names)
    against = 1 - fused.posterior[rows, labels]
    probability = np.empty_like(doubt)
    probability[np.argsort(-doubt, kind="stable")] = np.sort(against)[::-1]
    share = np.divide(others.max(axis=1), against, out=np.zeros_like(against), where=against > 0)
    return Suspects(
        index=signals.index,
        given=signals.labels,
        suggested=suggested,
        probability=_spread(probability, usable),
        suggestion_probability=_spread(probability * np.minimum(share, 1.0), usable),
        signals=columns,
        confusion=fused.confusion,
        details=details,
    )


def _spread(found: Floats, usable: Bools) -> Floats:
    """NaN where nothing was found."""
    spread = np.full(len(usable), np.nan)
    spread[usable] = found
    return spread
