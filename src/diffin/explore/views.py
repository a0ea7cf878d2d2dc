"""Filtering and sorting: from what is asked to the rows that are shown, in order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from diffin.errors import DatasetError
from diffin.explore.columns import Bools, Table, finite
from diffin.explore.marks import Marks
from diffin.sources import Indices

INDEX = "index"


@dataclass(frozen=True)
class Asked:
    """Which samples are wanted, in which order.

    Attributes:
        categories: by column, the places of the names that are wanted; -1 for those without a name.
        ranges: by column, from and to, inclusive; ``None`` for no bound. Rows without a number are in no range.
        agreement: whether label and prediction agree; ``None`` for either.
        failed: whether a sample has no influence; ``None`` for either.
        marks: which marks are wanted; empty for any.
        text: words to find in any text, or the index of a sample.
        sort: the column that is sorted by.
        descending: from the largest to the smallest.
    """

    categories: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    ranges: Mapping[str, tuple[float | None, float | None]] = field(default_factory=dict)
    agreement: bool | None = None
    failed: bool | None = None
    marks: tuple[int, ...] = ()
    text: str = ""
    sort: str = "influence"
    descending: bool = True

    @classmethod
    def from_json(cls, content: Any, table: Table) -> Asked:
        """Read what a page asks.

        Raises:
            DatasetError: it makes no sense, or names a column that is not there.
        """
        try:
            asked = cls(
                {str(name): tuple(int(code) for code in codes) for name, codes in content["categories"].items()},
                {str(name): (_bound(low), _bound(high)) for name, (low, high) in content["ranges"].items()},
                _either(content["agreement"]),
                _either(content["failed"]),
                tuple(int(code) for code in content["marks"]),
                str(content["text"]).strip(),
                str(content["sort"]),
                bool(content["descending"]),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DatasetError(f"this cannot be asked: {error!r}") from None
        unknown = {*asked.ranges, asked.sort} - {
            *table.numbers,
            INDEX,
        } | asked.categories.keys() - table.categories.keys()
        if unknown:
            raise DatasetError(f"there is no column {', '.join(sorted(unknown))}")
        return asked


def _bound(value: Any) -> float | None:
    return None if value is None else float(value)


def _either(value: Any) -> bool | None:
    return None if value is None else bool(value)


@dataclass(frozen=True, eq=False)
class View:
    """The samples that are shown.

    Attributes:
        rows: Int64[ndarray, "n"], in order.
        facets: of every category, how many samples with each name would be shown if nothing were chosen in it.
        histograms: by column, how many samples each bin would hold if the range of that column were not restricted.
    """

    rows: Indices
    facets: Mapping[str, list[int]]
    histograms: Mapping[str, list[int]]

    @classmethod
    def of(cls, asked: Asked, table: Table, marks: Marks, histograms: tuple[str, ...] = ("influence", "loss")) -> View:
        """Filter, sort and count.

        Args:
            asked: what is wanted.
            table: all columns.
            marks: what has been decided.
            histograms: columns of numbers to count in bins.
        """
        masks = _masks(asked, table, marks)
        wanted = _all(masks.values(), table.size)

        def without(name: str) -> Bools:
            return wanted if name not in masks else _all((m for n, m in masks.items() if n != name), table.size)

        facets = {name: category.counts(without(f"c {name}")) for name, category in table.categories.items()}
        binned = {name: table.numbers[name].bins.counts(without(f"r {name}")) for name in histograms}
        return cls(_sorted(wanted, asked, table), facets, binned)


def _masks(asked: Asked, table: Table, marks: Marks) -> dict[str, Bools]:
    """One mask for each restriction."""
    masks: dict[str, Bools] = {}
    for name, codes in asked.categories.items():
        if codes:
            # Of a copy: codes are filled in meanwhile, and isin looks at them more than once.
            masks[f"c {name}"] = np.isin(table.categories[name].codes.copy(), codes)
    for name, (low, high) in asked.ranges.items():
        values = np.arange(table.size) if name == INDEX else table.numbers[name].values
        if low is not None or high is not None:
            # A comparison with NaN is false.
            masks[f"r {name}"] = (values >= (-np.inf if low is None else low)) & (
                values <= (np.inf if high is None else high)
            )
    if asked.agreement is not None and {"label", "predicted"} <= table.categories.keys():
        label, predicted = (table.categories[name].codes for name in ("label", "predicted"))
        masks["agreement"] = (label >= 0) & (predicted >= 0) & ((label == predicted) == asked.agreement)
    if asked.failed is not None:
        masks["failed"] = np.isnan(table.numbers["influence"].values) == asked.failed
    if asked.marks:
        masks["marks"] = np.isin(marks.codes.copy(), asked.marks)
    if asked.text:
        masks["text"] = _matching(asked.text, table)
    return masks


def _matching(words: str, table: Table) -> Bools:
    found = np.zeros(table.size, dtype=bool)
    for texts in table.texts.values():
        found |= texts.containing(words, table.size)
    folded = words.casefold()
    for category in table.categories.values():
        codes = [code for code, name in enumerate(category.names) if folded in name.casefold()]
        if codes:
            found |= np.isin(category.codes.copy(), codes)
    number = words.removeprefix("#")
    if number.isascii() and number.isdigit() and int(number) < table.size:
        found[int(number)] = True
    return found


def _all(masks: Any, size: int) -> Bools:
    wanted = np.ones(size, dtype=bool)
    for mask in masks:
        wanted &= mask
    return wanted


def _sorted(wanted: Bools, asked: Asked, table: Table) -> Indices:
    if asked.sort == INDEX:
        rows = np.flatnonzero(wanted)
        return rows[::-1] if asked.descending else rows
    order = table.numbers[asked.sort].order(asked.descending)
    return order if wanted.all() else order[wanted[order]]


def histogram_edges(table: Table, name: str) -> list[float | None]:
    """The edges of the bins of a column of numbers, for the page."""
    return [finite(edge) for edge in table.numbers[name].bins.edges]
