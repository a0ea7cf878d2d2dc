"""What benchmarks of selection share: figures over shares of the data kept, with intervals over seeds, and their picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import t as student

Cells = Mapping[str, Mapping[Any, Any]]
"""By seed: what was found, by (method, share), and under ``"everything"`` for all of the data."""

COLOURS = (
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
_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 760, 420, 56, 34, 40


def shares_of(found: Cells) -> list[float]:
    """Those of which anything is there, ascending."""
    return sorted({key[1] for one in found.values() for key in one if key != "everything"})


def names_of(found: Cells) -> set[str]:
    """Methods of which anything is there."""
    return {key[0] for one in found.values() for key in one if key != "everything"}


def half_width(values: Sequence[float]) -> float | None:
    """Of the 95 % interval of the mean over seeds, by Student's t; ``None`` for one seed."""
    if len(values) < 2:
        return None
    return float(student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))


def interval(values: Sequence[float], *, signed: bool = False) -> str:
    """Mean in % and, of several, the half width of its interval."""
    if not values:
        return "-"
    half, mean = half_width(values), f"{100 * np.mean(values):{'+' if signed else ''}.2f}"
    return mean if half is None else f"{mean} ± {100 * half:.2f}"


@dataclass(frozen=True)
class Picture:
    """Lines over shares.

    Attributes:
        title: above it.
        shares: ascending.
        lines: by name, a value for each share in %; NaN where there is none.
        whole: of all the data, a dashed line.
        bottom: the lowest value that is shown; a line that falls below runs along the edge.
        headroom: above the highest value.
        right: width of the legend.
    """

    title: str
    shares: Sequence[float]
    lines: Mapping[str, Sequence[float]]
    whole: float
    bottom: float = 0.0
    headroom: float = 0.5
    right: int = 130

    def svg(self) -> str:
        """The picture."""
        right, low = _WIDTH - self.right, _HEIGHT - _BOTTOM
        shares, top = self.shares, self._top()

        def at(share: float, value: float) -> tuple[float, float]:
            along = (share - shares[0]) / max(shares[-1] - shares[0], 1e-9)
            up = (max(value, self.bottom) - self.bottom) / (top - self.bottom)
            return _LEFT + along * (right - _LEFT), low - up * (low - _TOP)

        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
            'font-size="12">',
            f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
            f'<text x="{_LEFT}" y="18" font-size="14">{self.title}</text>',
        ]
        for share in shares:
            x = at(share, self.bottom)[0]
            parts.append(f'<text x="{x:.0f}" y="{low + 18}" text-anchor="middle">{share:.0%}</text>')
        for value in np.arange(np.ceil(self.bottom), top, max(1, round((top - self.bottom) / 8))):
            y = at(shares[0], value)[1]
            parts.append(f'<line x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
            parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.0f}</text>')
        y = at(shares[0], self.whole)[1]
        parts.append(
            f'<line x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#555" stroke-dasharray="5 4"/>'
        )
        for number, (name, line) in enumerate(self.lines.items()):
            colour = COLOURS[number % len(COLOURS)]
            drawn = (point for point in zip(shares, line, strict=True) if np.isfinite(point[1]))
            points = " ".join("{:.1f},{:.1f}".format(*at(*point)) for point in drawn)
            parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
            parts.append(f'<text x="{right + 12}" y="{_TOP + 12 + 17 * number}" fill="{colour}">{name}</text>')
        last = _TOP + 12 + 17 * len(self.lines)
        parts.append(f'<text x="{right + 12}" y="{last}" fill="#555">all (dashed)</text></svg>')
        return "\n".join(parts)

    def _top(self) -> float:
        values = (value for line in self.lines.values() for value in line if np.isfinite(value))
        return float(max([self.whole, *values])) + self.headroom
