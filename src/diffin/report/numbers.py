"""Numbers as a person reads them: one power of ten a page, true minus signs, digits that line up."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

_SUPERSCRIPTS = str.maketrans("-0123456789", "\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079")
_MINUS = "\u2212"


@dataclass(frozen=True)
class Unit:
    """A power of ten that all influences of a page are given in.

    Attributes:
        exponent: a multiple of 3.
    """

    exponent: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Unit:
        """The unit in which the largest of ``values`` has one to three digits before the point."""
        largest = max((abs(v) for v in values if math.isfinite(v)), default=0.0)
        return cls(3 * math.floor(math.log10(largest) / 3) if largest > 0 else 0)

    @property
    def factor(self) -> float:
        """Multiply a value by this to have it in the unit."""
        return 10.0**-self.exponent

    @property
    def label(self) -> str:
        """A factor such as 10 to the minus 6 in superscripts, or nothing where the unit is one."""
        return f"\u00d710{str(self.exponent).translate(_SUPERSCRIPTS)}" if self.exponent else ""


def decimals_for(values: Iterable[float]) -> int:
    """How many decimals show the largest of ``values`` with three digits, at most 6."""
    largest = max((abs(v) for v in values if math.isfinite(v)), default=0.0)
    if largest == 0:
        return 0
    return min(6, max(0, 2 - math.floor(math.log10(largest))))


def signed(value: float, decimals: int) -> str:
    """With a plus or a minus sign; a rounded zero has none."""
    text = f"{abs(value):.{decimals}f}"
    if not math.isfinite(value):
        return "n/a"
    if float(text) == 0:
        return text
    return f"{_MINUS if value < 0 else '+'}{text}"


def significant(value: float) -> str:
    """Three significant digits."""
    if not math.isfinite(value):
        return "n/a"
    return f"{value:.3g}".replace("-", _MINUS)


def three_digits(value: float) -> str:
    """Three digits, zeros at the end kept, so that numbers under each other are of one length."""
    if not math.isfinite(value):
        return "n/a"
    return (f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")).replace("-", _MINUS)


def share(value: float) -> str:
    """A fraction as a percentage; what is not nothing never rounds to nothing."""
    if 0 < value < 0.005:
        return f"{value:.1%}" if value >= 0.0005 else "<0.1%"
    return f"{value:.0%}"


def count(number: int, noun: str, plural: str | None = None) -> str:
    """``1 sample``, ``5,000 samples``."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
