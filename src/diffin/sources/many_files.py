"""The same work on many files at once."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import TypeVar

from diffin.errors import DatasetError
from diffin.sources.locations import is_remote

_LOCAL_THREADS, _REMOTE_THREADS = 4, 16
_Out = TypeVar("_Out")


def of_each(function: Callable[[str], _Out], names: Sequence[str], *, processes: int = 1) -> Iterator[_Out]:
    """What a function makes of each file, in order. No more results are held than are worked on.

    Args:
        function: of the name; one that can be pickled if there are to be several processes.
        names: of the files.
        processes: with 1, threads of this process, which wait for files at the same time.

    Raises:
        DatasetError: a process was killed.
    """
    if processes > 1:
        workers, pool = processes, _forks(processes)
    else:
        workers = _REMOTE_THREADS if any(map(is_remote, names)) else _LOCAL_THREADS
        pool = ThreadPoolExecutor(workers)
    following = iter(names)
    try:
        waiting = [pool.submit(function, name) for name in islice(following, 2 * workers)]
        while waiting:
            result = waiting.pop(0).result()
            waiting += [pool.submit(function, name) for name in islice(following, 1)]
            yield result
    except BrokenProcessPool as error:
        raise DatasetError(f"a process of the {processes} that read files was killed; was memory short?") from error
    finally:
        pool.shutdown(cancel_futures=True)


def processes_for(names: Sequence[str]) -> int:
    """How many processes do well to read local files with little waiting; 1 where none can be started."""
    if "fork" not in multiprocessing.get_all_start_methods() or multiprocessing.current_process().daemon:
        return 1
    # Of remote files most of the time is waiting.
    free = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 1 if any(map(is_remote, names)) else min(len(names), free)


def _forks(count: int) -> Executor:
    # Forked, as others would start the program of the caller anew.
    return ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("fork"))
