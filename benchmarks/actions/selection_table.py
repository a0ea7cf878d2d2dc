"""Tables and pictures of the selection benchmark."""

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
"""By seed: what was found, by (method, share), and under ``"everything"`` for all of the data."""

_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM, _RIGHT = 760, 420, 56, 34, 40, 130
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
        f"data: {_interval(whole)}; one training: {seconds:.1f} s"
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
            *(_interval(_of(cells, method, share)) for share in shares),
            _interval(over_random, signed=True),
            f"{100 * np.mean([cell['wrong'] for cell in own]):.1f} %",
            f"{np.mean([cell['trainings'] for cell in own]):.0f}",
            # What several shares go by is found once, for the first of them.
            f"{np.max([cell['seconds'] for cell in own]):.1f}",
        )
    return table.markdown()


def methods_of(cells: Cells) -> list[str]:
    """Those of which anything is there, best mean over shares first."""
    shares = shares_of(cells)
    names = {key[0] for one in cells.values() for key in one if key != "everything"}
    means = {name: np.mean([np.mean(_of(cells, name, share) or [0]) for share in shares]) for name in names}
    return sorted(names, key=lambda name: -means[name])


def shares_of(cells: Cells) -> list[float]:
    return sorted({key[1] for one in cells.values() for key in one if key != "everything"})


def _of(cells: Cells, method: str, share: float) -> list[float]:
    """The mean accuracy of each seed."""
    return [_mean(one[method, share]) for one in cells.values() if (method, share) in one]


def _mean(cell: Mapping[str, Any]) -> float:
    return float(np.mean([result["accuracy"] for result in cell["results"]]))


def half_width(values: list[float]) -> float | None:
    """Of the 95 % interval of the mean over seeds, by Student's t; ``None`` for one seed."""
    if len(values) < 2:
        return None
    return float(student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))


def _interval(values: list[Any], *, signed: bool = False) -> str:
    if not values:
        return "-"
    half = half_width(values)
    mean = f"{100 * np.mean(values):{'+' if signed else ''}.2f}"
    return mean if half is None else f"{mean} ± {100 * half:.2f}"


def draw(title: str, cells: Cells) -> str:
    """Accuracy over shares, as SVG: a line for each method, a dashed one for all of the data."""
    shares = shares_of(cells)
    lines = {
        name: [100 * float(np.mean(_of(cells, name, share) or [np.nan])) for share in shares]
        for name in _DRAWN
        if name in methods_of(cells)
    }
    whole = 100 * float(np.mean([_mean(one["everything"]) for one in cells.values()]))
    top = max(whole, *(np.nanmax(line) for line in lines.values())) + 0.5
    # What falls far below random would press everything else together.
    bottom = min(lines.get("random", [whole - 10])) - 6
    right, low = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM

    def at(share: float, accuracy: float) -> tuple[float, float]:
        along = (share - shares[0]) / max(shares[-1] - shares[0], 1e-9)
        up = (max(accuracy, bottom) - bottom) / (top - bottom)
        return _LEFT + along * (right - _LEFT), low - up * (low - _TOP)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="18" font-size="14">{title}: test accuracy (%) over the share kept</text>',
    ]
    for share in shares:
        x = at(share, bottom)[0]
        parts.append(f'<text x="{x:.0f}" y="{low + 18}" text-anchor="middle">{share:.0%}</text>')
    for accuracy in np.arange(np.ceil(bottom), top, max(1, round((top - bottom) / 8))):
        y = at(shares[0], accuracy)[1]
        parts.append(f'<line x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{accuracy:.0f}</text>')
    y = at(shares[0], whole)[1]
    parts.append(f'<line x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#555" stroke-dasharray="5 4"/>')
    for number, (name, line) in enumerate(lines.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        points = " ".join("{:.1f},{:.1f}".format(*at(*point)) for point in zip(shares, line, strict=True))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{right + 12}" y="{_TOP + 12 + 17 * number}" fill="{colour}">{name}</text>')
    last = _TOP + 12 + 17 * len(lines)
    parts.append(f'<text x="{right + 12}" y="{last}" fill="#555">all (dashed)</text></svg>')
    return "\n".join(parts)
