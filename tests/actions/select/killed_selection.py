"""Run by test_select_resume: select in processes that are killed at random moments and started again.

Usage: killed_selection.py FOLDER KILLS SEED. Prints, as JSON, what was there after each kill, by method.
"""

from __future__ import annotations

from pathlib import Path

from pools import Fit, pool, task

from diffin.actions.select import Iterated, select
from killing import kill_repeatedly

KINDS = ("iterated", "influence")


def compute(output: Path, run: Path, kind: str) -> None:
    del run  # `fit` makes what is needed
    train, query, _ = pool()
    settings = Iterated(rounds=4) if kind == "iterated" else None
    select(
        task(), train, fractions=[0.2, 0.4], method=kind, fit=Fit(train, steps=8), query=query, settings=settings,
        output=output, progress=False,
    )  # fmt: skip


def written(output: Path) -> dict[str, int]:
    """What is whole, of rounds and of what a training on everything gave, by when it was written."""
    names = ("round-*.npz", "whole/*.json", "influence/*")
    return {
        str(path.relative_to(output)): path.stat().st_mtime_ns
        for name in names
        for path in output.rglob(name)
        if not path.name.endswith(".part")
    }


if __name__ == "__main__":
    kill_repeatedly(KINDS, lambda run: None, compute, written, most=2)
