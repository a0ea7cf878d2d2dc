"""Tables and pictures of the selection benchmark."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

from over_shares import Cells, Picture, interval, names_of, shares_of
from table import Table, machine

_DRAWN = ("iterated", "random", "influence", "moso", "ccs", "moderate", "k-center", "aum", "el2n", "diverse")


def tables(found: Mapping[tuple[str, str], Cells]) -> str:
    """One table for each data set and noise."""
    return "\n".join([*(_table(name, noise, cells) for (name, noise), cells in found.items()), machine()])


def _table(name: str, noise: str, cells: Cells) -> str:
    methods, shares = methods_of(cells), shares_of(cells)
    whole = [_mean(one["everything"]) for one in cells.values()]
    seconds = float(np.mean([one["everything"]["training_seconds"] for one in cells.values()]))
    title = (
        f"{name}, {noise}: test accuracy in % at each share kept, {len(cells)} seed{'s' * (len(cells) > 1)}; all of the "
        f"data: {interval(whole)}; one training: {seconds:.1f} s"
    )
    headings = (*(f"{share:.0%}" for share in shares), "mean - random", "wrong kept", "trainings", "seconds")
    table = Table(title, "method", *headings)
    for method in methods:
        over_random = [
            np.mean([_mean(one[method, share]) - _mean(one["random", share]) for share in shares])
            for one in cells.values()
            if all((m, share) in one for m in (method, "random") for share in shares)
        ]
        own = [one[method, share] for one in cells.values() for share in shares if (method, share) in one]
        table.add(
            method,
            *(interval(_of(cells, method, share)) for share in shares),
            interval(over_random, signed=True),
            f"{100 * np.mean([cell['wrong'] for cell in own]):.1f} %",
            f"{np.mean([cell['trainings'] for cell in own]):.0f}",
            # What several shares go by is found once, for the first of them.
            f"{np.max([cell['seconds'] for cell in own]):.1f}",
        )
    return table.markdown()


def methods_of(cells: Cells) -> list[str]:
    """Those of which anything is there, best mean over shares first."""
    shares = shares_of(cells)
    means = {name: np.mean([np.mean(_of(cells, name, share) or [0]) for share in shares]) for name in names_of(cells)}
    return sorted(means, key=lambda name: -means[name])


def _of(cells: Cells, method: str, share: float) -> list[float]:
    """The mean accuracy of each seed."""
    return [_mean(one[method, share]) for one in cells.values() if (method, share) in one]


def _mean(cell: Mapping[str, Any]) -> float:
    return float(np.mean([result["accuracy"] for result in cell["results"]]))


def draw(title: str, cells: Cells) -> str:
    """Accuracy over shares, as SVG: a line for each method, a dashed one for all of the data."""
    shares = shares_of(cells)
    lines = {
        name: [100 * float(np.mean(_of(cells, name, share) or [np.nan])) for share in shares]
        for name in _DRAWN
        if name in methods_of(cells)
    }
    whole = 100 * float(np.mean([_mean(one["everything"]) for one in cells.values()]))
    # What falls far below random would press everything else together.
    bottom = min(lines.get("random", [whole - 10])) - 6
    return Picture(f"{title}: test accuracy (%) over the share kept", shares, lines, whole, bottom).svg()
