"""Tables and the picture of the pruning benchmark."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

from table import Table, machine

Cells = Mapping[str, Mapping[Any, Any]]
"""By seed: what was found, by (method, share), and under ``"everything"`` for all of the pool."""

TARGET = (0.1, 0.2, 0.3, 0.5)
"""The shares over which methods are compared."""

_RIVALS = ("random", "clip-score", "distinct", "clip-score+distinct")

_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM, _RIGHT = 760, 420, 56, 34, 40, 190
_COLOURS = (
    "#d1495b",
    "#00798c",
    "#edae49",
    "#30638e",
    "#7b9e87",
    "#8f5da2",
    "#b0785a",
    "#5b5f97",
    "#c58882",
    "#3d5a40",
)


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
    names = {key[0] for one in found.values() for key in one if key != "everything"}
    return sorted(names, key=lambda name: -np.mean(_over(found, name, None) or [0]))


def shares_of(found: Cells) -> list[float]:
    return sorted({key[1] for one in found.values() for key in one if key != "everything"})


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


def half_width(values: list[float]) -> float | None:
    """Of the 95 % interval of the mean over seeds, by Student's t; ``None`` for one seed."""
    if len(values) < 2:
        return None
    return float(student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))


def interval(values: list[float], *, signed: bool = False) -> str:
    """Mean in % and, of several, the half width of its interval."""
    if not values:
        return "-"
    half, mean = half_width(values), f"{100 * np.mean(values):{'+' if signed else ''}.2f}"
    return mean if half is None else f"{mean} ± {100 * half:.2f}"


def draw(found: Cells) -> str:
    """R@1 over shares, as SVG: a line for each method, a dashed one for all of the pool."""
    shares = shares_of(found)
    lines = {
        name: [100 * float(np.mean(_of(found, name, share) or [np.nan])) for share in shares]
        for name in methods_of(found)[: len(_COLOURS)]
    }
    whole = 100 * float(np.mean([_mean(one["everything"], "mean", "R@1") for one in found.values()]))
    top = max([whole, *(value for line in lines.values() for value in line if np.isfinite(value))]) + 0.3
    right, low = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM

    def at(share: float, value: float) -> tuple[float, float]:
        along = (share - shares[0]) / max(shares[-1] - shares[0], 1e-9)
        return _LEFT + along * (right - _LEFT), low - value / top * (low - _TOP)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="18" font-size="14">R@1 (%) over the share of pairs kept</text>',
    ]
    parts += [f'<text x="{at(s, 0)[0]:.0f}" y="{low + 18}" text-anchor="middle">{s:.0%}</text>' for s in shares]
    for value in np.arange(0, top, max(1, round(top / 8))):
        y = at(shares[0], value)[1]
        parts.append(f'<line x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.0f}</text>')
    y = at(shares[0], whole)[1]
    parts.append(f'<line x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#555" stroke-dasharray="5 4"/>')
    for number, (name, line) in enumerate(lines.items()):
        drawn = (point for point in zip(shares, line, strict=True) if np.isfinite(point[1]))
        points = " ".join("{:.1f},{:.1f}".format(*at(*point)) for point in drawn)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{_COLOURS[number]}" stroke-width="2"/>')
        parts.append(f'<text x="{right + 12}" y="{_TOP + 12 + 17 * number}" fill="{_COLOURS[number]}">{name}</text>')
    parts.append(f'<text x="{right + 12}" y="{_TOP + 12 + 17 * len(lines)}" fill="#555">all (dashed)</text></svg>')
    return "\n".join(parts)
