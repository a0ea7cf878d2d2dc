"""A table that reads well in a terminal and is Markdown; and the machine that its figures belong to."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch


class Table:
    """Rows of text under a title, which may be empty."""

    def __init__(self, title: str, *columns: str) -> None:
        self._title = title
        self._rows: list[tuple[str, ...]] = [columns]

    def add(self, *cells: str) -> None:
        """One more row."""
        self._rows.append(tuple(cell.replace("|", "/") for cell in cells))

    def markdown(self) -> str:
        """The table with aligned columns."""
        widths = [max(len(row[column]) for row in self._rows) for column in range(len(self._rows[0]))]
        rule = tuple("-" * width for width in widths)
        lines = (self._rows[0], rule, *self._rows[1:])
        text = ("| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in lines)
        title = f"**{self._title}**\n\n" if self._title else ""
        return title + "\n".join(text) + "\n"


def machine() -> str:
    """Processor, cores and threads in use, versions."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        models = [
            line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        name = models[0] if models else name
    return (
        f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; Python {platform.python_version()}, "
        f"PyTorch {torch.__version__}"
    )
