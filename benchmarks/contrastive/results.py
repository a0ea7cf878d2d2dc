"""Tables and the picture of the pruning benchmark."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

from over_shares import COLOURS, Cells, Picture, interval, names_of, shares_of
from table import Table, machine

TARGET = (0.1, 0.2, 0.3, 0.5)
"""The shares over which methods are compared."""

_RIVALS = ("random", "clip-score", "distinct", "clip-score+distinct")

_LEGEND = 190


def tables(found: Cells) -> str:
    """R@1 at each share and over random; then R@1, R@5, R@10 of both test sets, means over shares."""
    return "\n".join([_shares(found), _cutoffs(found), machine()])


def _shares(found: Cells) -> str:
    shares, whole = shares_of(found), [_mean(one["everything"], "mean", "R@1") for one in found.values()]
    table = Table(
        f"R@1 in %, mean of unseen-vendor emoji and held-out clip art, {_seeds(found)}; all of the pool: {interval(whole)}",
        "method", *(f"{share:.0%}" for share in shares), f"mean of {_compared(found)}", *(f"over {name}" for name in _RIVALS),
        "emoji kept", "captions / pairs",
    )  # fmt: skip
    for method in methods_of(found):
        own = [one[method, share] for one in found.values() for share in shares if (method, share) in one]
        table.add(
            method,
            *(interval(_of(found, method, share)) for share in shares),
            interval(_over(found, method, None)),
            *(interval(_over(found, method, other), signed=True) for other in _RIVALS),
            f"{100 * np.mean([cell['emoji'] for cell in own]):.0f} %",
            f"{np.mean([cell['captions'] for cell in own]):.2f}",
        )
    return table.markdown()


def _cutoffs(found: Cells) -> str:
    columns = [(name, key) for name in ("emoji", "clipart") for key in ("R@1", "R@5", "R@10")]
    table = Table(
        f"Retrieval in %, mean of {_compared(found)} kept, {_seeds(found)}",
        "method",
        *(f"{name} {key}" for name, key in columns),
    )
    for method in methods_of(found):
        table.add(method, *(interval(_over(found, method, None, *column)) for column in columns))
    return table.markdown()


def _compared(found: Cells) -> str:
    return ", ".join(f"{100 * share:.0f}" for share in TARGET if share in shares_of(found)) + " %"


def _seeds(found: Cells) -> str:
    return f"{len(found)} seed{'s' * (len(found) != 1)}"


def methods_of(found: Cells) -> list[str]:
    """Those of which anything is there, best mean over shares first."""
    return sorted(names_of(found), key=lambda name: -np.mean(_over(found, name, None) or [0]))


def _of(found: Cells, method: str, share: float, test: str = "mean", key: str = "R@1") -> list[float]:
    return [_mean(one[method, share], test, key) for one in found.values() if (method, share) in one]


def _over(found: Cells, method: str, other: str | None, test: str = "mean", key: str = "R@1") -> list[float]:
    """By seed, the mean over the target shares, less that of another method; only what is there of both, whole."""
    shares = [share for share in TARGET if share in shares_of(found)]
    needed = [(name, share) for name in (method, other) if name is not None for share in shares]
    return [
        float(np.mean([_mean(one[method, s], test, key) for s in shares]))
        - (float(np.mean([_mean(one[other, s], test, key) for s in shares])) if other is not None else 0.0)
        for one in found.values()
        if all(cell in one for cell in needed)
    ]


def _mean(cell: Mapping[str, Any], test: str, key: str) -> float:
    return float(np.mean([result[test][key] for result in cell["results"]]))


def draw(found: Cells) -> str:
    """R@1 over shares, as SVG: a line for each method, a dashed one for all of the pool."""
    shares = shares_of(found)
    lines = {
        name: [100 * float(np.mean(_of(found, name, share) or [np.nan])) for share in shares]
        for name in methods_of(found)[: len(COLOURS)]
    }
    whole = 100 * float(np.mean([_mean(one["everything"], "mean", "R@1") for one in found.values()]))
    return Picture("R@1 (%) over the share of pairs kept", shares, lines, whole, headroom=0.3, right=_LEGEND).svg()
