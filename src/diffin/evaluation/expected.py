"""The influence expected over orders of the data, exact to first order, of all samples at once."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from diffin.errors import EvaluationError
from diffin.estimators.replay import Replay
from diffin.evaluation.parts import Arrays, Parts
from diffin.evaluation.question import Question, order_seeds
from diffin.evaluation.truth import Truth
from diffin.evaluation.workers import mapped
from diffin.progress import phase
from diffin.sources import Collate
from diffin.task import Task
from diffin.trajectory import Trajectory


def expected_influence(
    task: Task,
    trajectory: Trajectory,
    train: Any,
    query: Any,
    *,
    orders: int = 8,
    seed: int = 0,
    output: str | Path | None = None,
    resume: bool = True,
    progress: bool = True,
    processes: int = 1,
    collate: Collate | None = None,
) -> Truth:
    """The influence of every sample, mean over K other orders of the data.

    Every order is a training from the recorded initial parameters, with batches of the recorded sizes drawn anew, and is
    replayed (:class:`diffin.estimators.Replay`): a few trainings each, for all samples together. The cheapest truth there
    is about the data, as opposed to one run. It is the derivative with respect to the weight of a sample; removal is a
    finite step.

    Args:
        task: model and loss, as trained; the model is read, never written.
        trajectory: a recorded run that can be repeated.
        train: its training set.
        query: the samples whose mean loss is asked about.
        orders: K. Two or more tell how reliable the truth is.
        seed: of the orders. :func:`leave_one_out` draws the same ones; an estimate that is itself made from other orders
            should come from another seed.
        output: folder for the truth; what is finished of it is gone on with after an interruption.
        resume: ``False`` to replace what ``output`` holds.
        progress: show bars with the time left.
        processes: how many orders at a time, on a CPU; each process has one thread.
        collate: makes a batch of a list of samples; ``None`` for the default.

    Returns:
        A truth about N single samples, ``kind="expected"``.

    Raises:
        EvaluationError: an argument is wrong, or ``output`` holds another truth.
        TrajectoryError: the run cannot be repeated.
        DerivativeError: a derivative is not finite, or the model cannot be differentiated twice.
    """
    if orders < 1:
        raise EvaluationError(
            f"orders={orders}; pass how many other orders to average over, 2 or more to know how noisy"
        )
    question = Question(task, trajectory, train, query, collate=collate)
    check_processes(processes, question)
    seeds = order_seeds(orders, seed)
    parts = Parts(output, {"kind": "expected", "orders": seeds, **question.identity()}, resume=resume)
    if (found := parts.complete()) is not None:
        return found
    settings = parts.settings(lambda: {"repeated_to": question.check_repeats()})

    def replay(number: int, advance: Callable[[int], None]) -> Arrays:
        start, folder = time.perf_counter(), parts.work_folder(number)
        replayed = Replay().walk(
            question.rerun(seeds[number]),
            [question.query_set()],
            folder=folder,
            identity=json.dumps([parts.identity, seeds[number]]),
            progress=progress and processes == 1,
        )
        advance(1)
        return {"influence": replayed.influence[0], "seconds": np.array(time.perf_counter() - start)}

    with phase("orders replayed", orders, show=progress and processes > 1) as bar:
        for number, arrays in mapped(replay, parts.missing(orders), processes=processes, advance=bar.advance):
            parts.write(number, arrays)
            if (folder := parts.work_folder(number)) is not None:
                shutil.rmtree(folder, ignore_errors=True)
    made = [parts.read(number) for number in range(orders)]
    seconds = float(sum(part["seconds"] for part in made))
    return parts.finish(
        Truth(
            kind="expected",
            groups=tuple(np.arange(question.size)[:, None]),
            replicas=np.stack([part["influence"] for part in made]),
            order_seeds=tuple(seeds),
            metadata=described(question, parts, settings, seconds),
        )
    )


def check_processes(processes: int, question: Question) -> None:
    """Refuse what cannot be forked."""
    if processes < 1:
        raise EvaluationError(f"processes={processes}; pass 1 or more")
    if processes > 1 and question.loss.device.type != "cpu":
        raise EvaluationError(f"processes={processes}: the model is on {question.loss.device}; pass 1 there")


def described(question: Question, parts: Parts, settings: dict[str, Any], seconds: float) -> dict[str, Any]:
    """The metadata of a truth."""
    return {
        "dataset_size": question.size,
        "query_size": question.query.length,
        "steps": question.trajectory.total_steps,
        "seconds": round(seconds, 3),
        **settings,
        "identity": parts.identity,
    }
