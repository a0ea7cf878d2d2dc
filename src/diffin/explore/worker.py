"""One thread that reads data and runs the model: what is waited for first, the rest when nothing is.

Neither data sets nor models are usually made for several threads at once.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Worker:
    """Does one thing after the other. A job is something waited for; a task goes on in steps while there are no jobs."""

    def __init__(self) -> None:
        self._jobs: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._tasks: deque[Iterator[object]] = deque()
        self._ready = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="diffin-explore", daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], T]) -> Future[T]:
        """Do something soon; cancelling what it returns before its turn spares the work."""
        future: Future[T] = Future()
        with self._ready:
            self._jobs.append((future, job))
            self._ready.notify()
        return future

    def go_through(self, steps: Iterator[object]) -> None:
        """Go through something step by step, between jobs."""
        with self._ready:
            self._tasks.append(steps)
            self._ready.notify()

    def close(self, timeout: float = 5.0) -> None:
        """Stop after the present step; what has not begun is cancelled."""
        with self._ready:
            self._closed = True
            self._ready.notify()
        self._thread.join(timeout)

    def _run(self) -> None:
        while True:
            with self._ready:
                self._ready.wait_for(lambda: self._closed or self._jobs or self._tasks)
                if self._closed:
                    for future, _ in self._jobs:
                        future.cancel()
                    return
                job = self._jobs.popleft() if self._jobs else None
            if job is not None:
                self._do(*job)
            else:
                self._step()

    def _do(self, future: Future[Any], job: Callable[[], Any]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(job())
        except BaseException as error:  # Whoever waits gets it, whatever it is.
            future.set_exception(error)

    def _step(self) -> None:
        try:
            next(self._tasks[0])
        except StopIteration:
            self._tasks.popleft()
        except Exception as error:  # A task of the user's data or model; the page is of use without.
            logger.warning("not gone on with: %s: %s", type(error).__name__, error)
            self._tasks.popleft()
