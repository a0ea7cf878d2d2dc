"""What is said of a sample beside what it looks like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffin.errors import DatasetError
from diffin.explore.columns import Category, Table, finite
from diffin.explore.courses import Courses
from diffin.explore.marks import VERDICTS, Marks
from diffin.explore.neighbours import Neighbours
from diffin.explore.telling import Teller


@dataclass(frozen=True, eq=False)
class Sayings:
    """Everything that is known of single samples.

    Attributes:
        table: all columns.
        marks: what has been decided.
        teller: labels and predictions, of a problem.
        classes: the class of every sample; ``None`` where there are no classes.
        keys: what samples are called, if they have keys.
        failures: why a sample has no influence, by its index, where that is known.
        courses: the terms.
        neighbours: queries, if there is an attribution.
    """

    table: Table
    marks: Marks
    teller: Teller | None
    classes: Category | None
    keys: Sequence[str] | None
    failures: Mapping[int, str]
    courses: Courses
    neighbours: Neighbours | None

    def row(self, row: int) -> dict[str, Any]:
        """What is shown of a sample besides itself."""
        table, teller = self.table, self.teller
        found: dict[str, Any] = {
            "i": row,
            "influence": finite(table.numbers["influence"].values[row]),
            "loss": finite(table.numbers["loss"].values[row]),
            **self._mark(row),
        }
        if self.keys is not None:
            found["key"] = self.keys[row]
        for name in ("confidence", "probability"):
            if name in table.numbers:
                found[name] = finite(table.numbers[name].values[row])
        for name in ("label", "predicted"):
            found[name] = teller.said(name, row) if teller is not None else self._named(name, row)
        found["suggested"] = self._named("suggested", row)
        if self.classes is not None:
            found["given"] = int(self.classes.codes[row])
        found["rather"] = self._rather(row)
        return {name: value for name, value in found.items() if value is not None}

    def sample(self, row: int) -> dict[str, Any]:
        """Everything known about one sample.

        Raises:
            DatasetError: there is no such sample.
        """
        table = self.table
        if not 0 <= row < table.size:
            raise DatasetError(f"there is no sample {row} among {table.size}")
        numbers = {
            name: [column.title, column.group, finite(column.values[row])]
            for name, column in table.numbers.items()
            if name != "magnitude"
        }
        return {
            **self.row(row),
            "rank": int(table.ranks[row]) if np.isfinite(table.numbers["influence"].values[row]) else None,
            "ranked": int(np.isfinite(table.numbers["influence"].values).sum()),
            "terms": [finite(term) for term in self.courses.of(row)],
            "numbers": numbers,
            "categories": {
                name: [category.title, category.name(row)]
                for name, category in table.categories.items()
                if name not in ("label", "predicted")
            },
            "failure": self.failures.get(row),
            "queries": None if self.neighbours is None else self.neighbours.sample(row),
        }

    def _mark(self, row: int) -> dict[str, Any]:
        code, label = int(self.marks.codes[row]), int(self.marks.labels[row])
        if code == 0:
            return {}
        return {"mark": VERDICTS[code], **({"marked": label} if label >= 0 else {})}

    def _named(self, name: str, row: int) -> str | None:
        category = self.table.categories.get(name)
        return None if category is None else category.name(row)

    def _rather(self, row: int) -> int | None:
        """The class to relabel a sample as: the suggested one, or else what the model says, if it is another."""
        if self.classes is None:
            return None
        for name in ("suggested", "predicted"):
            category = self.table.categories.get(name)
            if category is not None and category.codes[row] >= 0 and category.codes[row] != self.classes.codes[row]:
                return int(category.codes[row])
        return None
