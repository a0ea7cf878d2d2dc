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
    """One table for each data set and noise, and one of all."""
    return "\n".join(
        [*(_table(name, noise, cells) for (name, noise), cells in found.items()), _overview(found), machine()]
    )


def _overview(found: Mapping[tuple[str, str], Cells]) -> str:
    """Every method on every data set: its mean over the shares, less that of random subsets; best mean of all first."""
    above = {key: {name: _over_random(cells, name) for name in methods_of(cells)} for key, cells in found.items()}
    names = {name for methods in above.values() for name in methods}
    means = {name: np.mean([np.mean(methods.get(name) or [-1.0]) for methods in above.values()]) for name in names}
    headings = (f"{name}, {noise}, {len(cells)}" for (name, noise), cells in found.items())
    table = Table("mean over the shares less that of random subsets, in points; number of seeds", "method", *headings)
    for name in sorted(names, key=lambda name: -means[name]):
        table.add(name, *(interval(methods.get(name, []), signed=True) for methods in above.values()))
    return table.markdown()


def _over_random(cells: Cells, method: str) -> list[float]:
    """Of each seed that has all shares."""
    shares = shares_of(cells)
    return [
        float(np.mean([_mean(one[method, share]) - _mean(one["random", share]) for share in shares]))
        for one in cells.values()
        if all((m, share) in one for m in (method, "random") for share in shares)
    ]


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
        own = [one[method, share] for one in cells.values() for share in shares if (method, share) in one]
        table.add(
            method,
            *(interval(_of(cells, method, share)) for share in shares),
            interval(_over_random(cells, method), signed=True),
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
