"""What is printed where: results on standard output; errors, warnings and progress on standard error."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape

console = Console()
errors = Console(stderr=True)


@contextmanager
def timed(description: str) -> Iterator[list[str]]:
    """Prints what is being done and, afterwards, how long it took and what is appended to the yielded list."""
    console.print(f"[bold]{description}[/]")
    start = time.perf_counter()
    remarks: list[str] = []
    yield remarks
    console.print(f"  {', '.join([f'{time.perf_counter() - start:.1f} s', *remarks])}")


def number(value: float | None, form: str = ".1e") -> str:
    return "-" if value is None else format(value, form)


def counted(count: int, noun: str) -> str:
    """A number of things, e.g. ``1 share`` or ``2 shares``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def plain(text: str) -> str:
    """Text that rich does not take for markup."""
    return escape(text)
