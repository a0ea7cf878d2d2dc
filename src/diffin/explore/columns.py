"""What samples can be filtered and sorted by: a column each of numbers, categories or text, a row for every sample."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from diffin.scoring.columns import Floats
from diffin.sources import Indices

if TYPE_CHECKING:
    import pyarrow as pa

Bools = npt.NDArray[np.bool_]
Codes = npt.NDArray[np.int32]

BINS = 48
MOST_CATEGORIES = 500
"""A column with more different values is searched as text rather than listed."""
LONGEST_SEARCHED = 2000
_REACH = 4.0


@dataclass(eq=False)
class Numbers:
    """A number for every sample.

    Attributes:
        title: what it is called on the page.
        values: Float64[ndarray, "N"], NaN where there is none.
        group: under which heading it is listed.
        large_first: whether one usually looks at the largest first.
    """

    title: str
    values: Floats
    group: str = ""
    large_first: bool = True

    def order(self, descending: bool) -> Indices:
        """Int64[ndarray, "N"], rows by this number; those that have none come last, equal ones in the order of the rows."""
        return self._descending if descending else self._ascending

    @cached_property
    def bins(self) -> Bins:
        """A histogram's edges, and the bin of every row."""
        return Bins.of(self.values)

    def changed(self) -> None:
        """Forget what was computed from the values, which are not what they were."""
        for name in ("_ascending", "_descending", "bins"):
            self.__dict__.pop(name, None)

    @cached_property
    def _ascending(self) -> Indices:
        # A copy: another thread may be filling them in.
        return np.argsort(self.values.copy(), kind="stable")

    @cached_property
    def _descending(self) -> Indices:
        return np.argsort(-self.values, kind="stable")


@dataclass(frozen=True, eq=False)
class Bins:
    """Bins of one width; those at the ends also hold what lies beyond.

    Attributes:
        edges: Float64[ndarray, "bins + 1"].
        number: UInt8[ndarray, "N"], the bin of every row; ``len(edges) - 1`` for a row without a number.
    """

    edges: Floats
    number: npt.NDArray[np.uint8]

    @classmethod
    def of(cls, values: Floats) -> Bins:
        """Bins that outliers do not stretch: up to four interquartile ranges beyond the quartiles."""
        known = np.isfinite(values)
        finite = values[known]
        low, high = 0.0, 1.0
        if len(finite):
            first, third = (float(q) for q in np.quantile(finite, [0.25, 0.75]))
            reach = _REACH * (third - first) or np.inf
            low, high = max(float(finite.min()), first - reach), min(float(finite.max()), third + reach)
            if not high > low:
                low, high = low - 0.5 * (abs(low) or 1.0), high + 0.5 * (abs(high) or 1.0)
        number = np.full(len(values), BINS, dtype=np.uint8)
        number[known] = np.clip((finite - low) * (BINS / (high - low)), 0, BINS - 1).astype(np.uint8)
        return cls(np.linspace(low, high, BINS + 1), number)

    def counts(self, chosen: Bools | None = None) -> list[int]:
        """How many of the ``chosen`` rows, or of all, are in each bin."""
        numbers = self.number if chosen is None else self.number[chosen]
        found: list[int] = np.bincount(numbers, minlength=BINS + 1)[:BINS].tolist()
        return found


@dataclass(eq=False)
class Category:
    """One of some names for every sample.

    Attributes:
        title: what it is called on the page.
        codes: Int32[ndarray, "N"], a place in ``names``; -1 where there is none.
        names: what the codes stand for.
    """

    title: str
    codes: Codes
    names: list[str]

    def counts(self, chosen: Bools) -> list[int]:
        """How many of the ``chosen`` rows have each name."""
        found: list[int] = np.bincount(self.codes[chosen] + 1, minlength=len(self.names) + 1)[1:].tolist()
        return found

    def name(self, row: int) -> str | None:
        """What a row has; ``None`` for nothing."""
        code = int(self.codes[row])
        return self.names[code] if code >= 0 else None


class Texts:
    """A text for every sample, to search in; it may still be growing."""

    def __init__(self, texts: Iterable[str | None] = ()) -> None:
        self._chunks: list[pa.Array] = []
        self.count = 0
        texts = list(texts)
        if texts:
            self.extend(texts)

    def extend(self, texts: Sequence[str | None]) -> None:
        """Add the texts of the rows that follow."""
        import pyarrow as pa

        folded = [None if text is None else text[:LONGEST_SEARCHED].casefold() for text in texts]
        self._chunks.append(pa.array(folded, pa.large_string()))
        self.count += len(folded)

    def containing(self, words: str, size: int) -> Bools:
        """Bool[ndarray, "N"], whether the text of a row holds ``words``, in whatever case."""
        import pyarrow as pa
        import pyarrow.compute as pc

        found = np.zeros(size, dtype=bool)
        if self._chunks:
            # A snapshot: another thread may be adding.
            matches = pc.match_substring(pa.chunked_array(list(self._chunks)), words.casefold())
            values = pc.fill_null(matches, False).to_numpy()[:size]
            found[: len(values)] = values
        return found


@dataclass(eq=False)
class Table:
    """All columns.

    Attributes:
        size: N, the number of samples.
        numbers: by name; ``influence`` and ``loss`` are there.
        categories: by name; the classes of the data, where there are any, are ``label``.
        texts: what is searched, by name.
    """

    size: int
    numbers: dict[str, Numbers] = field(default_factory=dict)
    categories: dict[str, Category] = field(default_factory=dict)
    texts: dict[str, Texts] = field(default_factory=dict)

    @cached_property
    def ranks(self) -> Indices:
        """Int64[ndarray, "N"], 1 for the largest influence."""
        ranks = np.empty(self.size, dtype=np.int64)
        ranks[self.numbers["influence"].order(descending=True)] = np.arange(1, self.size + 1)
        return ranks


def finite(value: Any) -> float | None:
    """As a JSON number of seven digits; ``None`` for one that is not finite."""
    number = float(value)
    return float(f"{number:.7g}") if np.isfinite(number) else None
