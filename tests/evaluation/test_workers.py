"""Jobs in several processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from diffin.errors import DerivativeError, EvaluationError
from diffin.evaluation.workers import mapped


def square(number: int, advance: Callable[[int], None]) -> tuple[int, int]:
    advance(number)
    return number * number, os.getpid()


@pytest.mark.parametrize("processes", [1, 3])
def test_every_job_is_done_once_and_its_work_is_counted(processes: int) -> None:
    counted: list[int] = []
    results = list(mapped(square, [5, 1, 7, 2], processes=processes, advance=counted.append))
    assert sorted((number, value[0]) for number, value in results) == [(1, 1), (2, 4), (5, 25), (7, 49)]
    assert sum(counted) == 15
    assert {value[1] for _, value in results} <= {os.getpid()} or processes > 1
    assert len({value[1] for _, value in results}) <= processes


def test_what_a_job_raises_comes_out() -> None:
    def refuse(number: int, advance: Callable[[int], None]) -> None:
        raise DerivativeError("a loss is not finite") if number else ZeroDivisionError("by nothing")

    with pytest.raises(DerivativeError, match="not finite"):
        list(mapped(refuse, [1, 2], processes=2, advance=len))
    with pytest.raises(EvaluationError, match="by nothing"):
        list(mapped(refuse, [0, 0], processes=2, advance=len))


def test_a_process_that_is_killed_is_noticed() -> None:
    def die(number: int, advance: Callable[[int], None]) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(EvaluationError, match="ended with status -9"):
        list(mapped(die, [1, 2], processes=2, advance=len))


def test_processes_end_with_the_one_that_asked(tmp_path: Path) -> None:
    def endless(number: int, advance: Callable[[int], None]) -> None:
        (tmp_path / str(os.getpid())).touch()
        while True:
            time.sleep(0.01)
            advance(1)

    asking = os.fork()
    if asking == 0:
        list(mapped(endless, [1, 2], processes=2, advance=bool))
        os._exit(0)
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
    os.kill(asking, signal.SIGKILL)
    os.waitpid(asking, 0)
    wait_until(lambda: not any(map(is_alive, tmp_path.iterdir())))


def wait_until(true: Callable[[], bool]) -> None:
    start = time.monotonic()
    while not true():
        assert time.monotonic() - start < 20
        time.sleep(0.02)


def is_alive(file: Path) -> bool:
    try:
        status = Path(f"/proc/{file.name}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return status != "Z"
