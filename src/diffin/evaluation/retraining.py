"""Training again with other weights of the samples: left out one by one, in groups, or by halves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np

from diffin.errors import EvaluationError
from diffin.evaluation.expected import check_processes
from diffin.evaluation.question import Question, order_seeds
from diffin.evaluation.runs import Change, retrain
from diffin.evaluation.truth import Truth, as_indices
from diffin.rerun.many import Method
from diffin.sources import Collate, Indices
from diffin.task import Task
from diffin.trajectory import Trajectory


class Options(TypedDict, total=False):
    """What all of these functions take.

    Attributes:
        orders: 0 for the recorded order, the truth about this very run; K for the mean over K other orders.
        query_samples: positions in the query of samples whose own losses are kept, too (:attr:`Truth.per_query`).
        seed: of the orders, and of what is drawn.
        output: folder for the truth; a run that was interrupted, at any moment and however, goes on with what is finished.
        resume: ``False`` to replace what ``output`` holds.
        progress: show a bar with the time left.
        processes: processes with one thread each, on a CPU.
        method: ``"auto"``, ``"vmap"`` or ``"loop"``, and
        at_once: how many runs are stacked; see :func:`diffin.rerun.many.choose_manner`. The truth depends on them by
            rounding only.
        collate: makes a batch of a list of samples; ``None`` for the default.
    """

    orders: int
    query_samples: Sequence[int] | Indices | None
    seed: int
    output: str | Path | None
    resume: bool
    progress: bool
    processes: int
    method: Method
    at_once: int | None
    collate: Collate | None


def leave_one_out(
    task: Task,
    trajectory: Trajectory,
    train: Any,
    query: Any,
    *,
    samples: int | Sequence[int] | Indices | None = 200,
    weight: float = 0.0,
    **options: Unpack[Options],
) -> Truth:
    """Train again without each of some samples, everything else as it was.

    The influence is L(with) - L(without), of the mean query loss at the end: negative helps. The sample stays in its batches
    with its loss multiplied by ``weight``, so that batch sizes, their divisors and batch statistics are as they were.
    Both losses come from the same code, the one with every sample as one more run.

    Args:
        task: model and loss, as trained; the model is read, never written.
        trajectory: a recorded run that can be repeated.
        train: its training set.
        query: the samples whose mean loss is asked about.
        samples: which ones; a number draws as many without replacement, ``None`` takes all.
        weight: 0 for removal, 0.95 for an influence that is close to the derivative: the difference is divided by
            ``1 - weight``.
        **options: see :class:`Options`.

    Raises:
        EvaluationError: an argument is wrong, or ``output`` holds another truth.
        TrajectoryError: the run cannot be repeated.
    """
    question = _question(task, trajectory, train, query, options)
    chosen = _drawn(samples, question.size, options.get("seed", 0))
    _check_weight(weight)
    changes = [Change(sample, weight, 1.0) for sample in chosen[:, None]]
    return _truth("loo", question, changes, options)


def leave_groups_out(
    task: Task,
    trajectory: Trajectory,
    train: Any,
    query: Any,
    *,
    groups: int | Sequence[Sequence[int] | Indices] = 50,
    fraction: float = 0.02,
    weight: float = 0.0,
    **options: Unpack[Options],
) -> Truth:
    """Train again without each of some groups of samples, removed together; see :func:`leave_one_out`.

    An estimate for a group is the sum of the scores of its members.

    Args:
        task: model and loss, as trained; the model is read, never written.
        trajectory: a recorded run that can be repeated.
        train: its training set.
        query: the samples whose mean loss is asked about.
        groups: which ones; a number draws as many. They are disjoint for as long as the training set lasts.
        fraction: size of a drawn group, as a fraction of the training set.
        weight: see :func:`leave_one_out`.
        **options: see :class:`Options`.

    Raises:
        EvaluationError: an argument is wrong, or ``output`` holds another truth.
        TrajectoryError: the run cannot be repeated.
    """
    question = _question(task, trajectory, train, query, options)
    if isinstance(groups, int):
        members = _drawn_groups(
            groups, _part("fraction", fraction, question.size), question.size, options.get("seed", 0)
        )
    else:
        members = [as_indices(group, question.size, f"groups[{n}]") for n, group in enumerate(groups)]
    _check_weight(weight)
    if not members:
        raise EvaluationError("groups: pass at least one group, or how many to draw")
    return _truth("groups", question, [Change(group, weight, 1.0) for group in members], options)


def subsets(
    task: Task,
    trajectory: Trajectory,
    train: Any,
    query: Any,
    *,
    count: int = 100,
    fraction: float = 0.5,
    rescale: bool = True,
    **options: Unpack[Options],
) -> Truth:
    """Train again on random subsets: the linear datamodeling score of an estimate is how well sums order their losses.

    Args:
        task: model and loss, as trained; the model is read, never written.
        trajectory: a recorded run that can be repeated.
        train: its training set.
        query: the samples whose mean loss is asked about.
        count: how many subsets.
        fraction: of the training set that each keeps.
        rescale: give the samples that are kept the weight ``1 / fraction``, so that a step is as long as with all of them;
            otherwise half the samples would also mean half the learning rate.
        **options: see :class:`Options`.

    Raises:
        EvaluationError: an argument is wrong, or ``output`` holds another truth.
        TrajectoryError: the run cannot be repeated.
    """
    question = _question(task, trajectory, train, query, options)
    size = _part("fraction", fraction, question.size)
    if count < 1 or size == question.size:
        raise EvaluationError(f"count={count}, fraction={fraction}; pass how many subsets, and a fraction below 1")
    generator = np.random.default_rng([options.get("seed", 0), 2])
    kept = [np.sort(generator.choice(question.size, size, replace=False)) for _ in range(count)]
    weight = question.size / size if rescale else 1.0
    return _truth("lds", question, [Change(subset, weight, 0.0) for subset in kept], options)


def _question(task: Task, trajectory: Trajectory, train: Any, query: Any, options: Options) -> Question:
    unknown = sorted(set(options) - set(Options.__annotations__))
    if unknown:
        raise TypeError(f"unknown options: {', '.join(unknown)}")
    question = Question(
        task, trajectory, train, query, collate=options.get("collate"), singles=options.get("query_samples")
    )
    check_processes(options.get("processes", 1), question)
    return question


def _truth(kind: Any, question: Question, changes: list[Change], options: Options) -> Truth:
    return retrain(
        kind,
        question,
        changes,
        order_seeds(options.get("orders", 0), options.get("seed", 0)),
        output=options.get("output"),
        resume=options.get("resume", True),
        progress=options.get("progress", True),
        processes=options.get("processes", 1),
        method=options.get("method", "auto"),
        at_once=options.get("at_once"),
    )


def _drawn(samples: int | Sequence[int] | Indices | None, size: int, seed: int) -> Indices:
    if samples is None:
        return np.arange(size)
    if isinstance(samples, int):
        if samples < 1:
            raise EvaluationError(f"samples={samples}; pass how many samples to leave out, one by one, or None for all")
        generator = np.random.default_rng([seed, 0])
        return np.sort(generator.choice(size, min(samples, size), replace=False))
    return as_indices(samples, size, "samples")


def _drawn_groups(count: int, members: int, size: int, seed: int) -> list[Indices]:
    """Cut from permutations of the training set, one after another."""
    generator = np.random.default_rng([seed, 1])
    per_pass = size // members
    drawn: list[Indices] = []
    while len(drawn) < count:
        order = generator.permutation(size)[: per_pass * members]
        drawn += [np.sort(group) for group in np.split(order, per_pass)]
    return drawn[:count]


def _check_weight(weight: float) -> None:
    if not (np.isfinite(weight) and weight != 1 and weight >= 0):
        raise EvaluationError(f"weight={weight}; pass 0 for removal, or a weight close to 1, such as 0.95")


def _part(argument: str, fraction: float, size: int) -> int:
    if not 0 < fraction <= 1:
        raise EvaluationError(f"{argument}={fraction}; pass a fraction of the training set, above 0 and up to 1")
    return max(1, round(fraction * size))
