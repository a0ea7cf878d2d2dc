"""Progress of long work: one abstraction, shown by rich or not at all."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

_silent = ContextVar("_silent", default=False)


@contextmanager
def silenced() -> Iterator[None]:
    """Show no phase at all, whoever asks: also of what no argument reaches, such as the index that a dataset makes."""
    token = _silent.set(True)
    try:
        yield
    finally:
        _silent.reset(token)


class Phase:
    """A running phase: call :meth:`advance` as work is done."""

    def advance(self, amount: int = 1) -> None:
        """Say that ``amount`` more units are done."""


class _ShownPhase(Phase):
    def __init__(self, bar: Progress, total: int | None, description: str) -> None:
        self._bar = bar
        self._task = bar.add_task(description, total=total)

    def advance(self, amount: int = 1) -> None:
        self._bar.advance(self._task, amount)


@contextmanager
def phase(description: str, total: int | None, *, show: bool) -> Iterator[Phase]:
    """A phase of known or unknown length, with elapsed time and time left on standard error.

    Args:
        description: what is being done, e.g. ``"scoring"``.
        total: units of work; ``None`` when unknown.
        show: ``False`` for silence.
    """
    if not show or _silent.get():
        yield Phase()
        return
    # Imported where it is used, to keep `import diffin` fast.
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(file=sys.stderr), transient=False) as bar:
        yield _ShownPhase(bar, total, description)
