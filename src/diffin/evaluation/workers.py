"""Work in several processes, each a fork of this one with a single thread. Forked, so that nothing has to be pickled."""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from diffin.errors import DiffinError, EvaluationError

Job = Callable[[int, Callable[[int], None]], Any]
"""Does the job of a number, and says how much of it is done as it goes."""

_PERIOD = 0.2


def mapped(
    job: Job, numbers: Sequence[int], *, processes: int, advance: Callable[[int], None]
) -> Iterator[tuple[int, Any]]:
    """Number and result of every job, in the order in which they end.

    Args:
        job: what to do.
        numbers: of the jobs.
        processes: how many processes; with 1, everything happens in this one.
        advance: called here with what the jobs say they have done.

    Raises:
        EvaluationError: a process was killed, or this platform cannot fork.
        DiffinError: what a job raised.
    """
    processes = min(processes, len(numbers))
    if processes <= 1:
        for number in numbers:
            yield number, job(number, advance)
        return
    if "fork" not in multiprocessing.get_all_start_methods():
        raise EvaluationError(f"processes={processes}: this platform cannot fork; pass processes=1")
    context = multiprocessing.get_context("fork")
    workers: dict[Connection, Any] = {}
    waiting = list(reversed(numbers))
    try:
        for _ in range(processes):
            here, there = context.Pipe()
            # Ends of pipes that a fork inherits would keep them open after their owner has died.
            worker = context.Process(target=_serve, args=(job, there, [*workers, here]), daemon=True)
            worker.start()
            there.close()
            workers[here] = worker
            here.send(waiting.pop())
        while workers:
            ready: list[Any] = wait(list(workers))
            for here in ready:
                try:
                    kind, value = here.recv()
                except EOFError:
                    workers[here].join()
                    raise EvaluationError(
                        f"a process of the {processes} ended with status {workers[here].exitcode}; was memory short? "
                        "What is finished is kept: go on with the same call, or fewer processes"
                    ) from None
                if kind == "steps":
                    advance(value)
                    continue
                if kind == "error":
                    raise value
                if waiting:
                    here.send(waiting.pop())
                else:
                    here.send(None)
                    workers.pop(here).join()
                    here.close()
                yield value
    finally:
        for here, worker in workers.items():
            here.close()
            worker.terminate()
            worker.join()


def _serve(job: Job, pipe: Connection, inherited: Sequence[Connection]) -> None:
    for connection in inherited:
        connection.close()
    torch.set_num_threads(1)
    parent, done, told = os.getppid(), 0, time.monotonic()

    def advance(amount: int) -> None:
        nonlocal done, told
        done += amount
        now = time.monotonic()
        if now - told > _PERIOD:
            if os.getppid() != parent:
                os._exit(1)  # nobody is left to work for
            pipe.send(("steps", done))
            done, told = 0, now

    try:
        while (number := pipe.recv()) is not None:
            result = job(number, advance)
            pipe.send(("steps", done))
            done = 0
            pipe.send(("result", (number, result)))
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        pass  # whoever asked is gone, or wants no more
    except DiffinError as error:
        pipe.send(("error", error))
    except Exception:
        pipe.send(("error", EvaluationError(f"a process failed:\n{traceback.format_exc()}")))
    finally:
        pipe.close()
