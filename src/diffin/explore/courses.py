"""What each checkpoint contributed to the influence of a sample."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from diffin.scoring.columns import Floats, term_names, to_numpy
from diffin.scoring.sink import FolderParts

if TYPE_CHECKING:
    from diffin.scoring.scores import Scores


class Courses:
    """The terms of single samples, without those of all others in memory.

    Args:
        scores: in a folder, or in memory.
    """

    def __init__(self, scores: Scores) -> None:
        self._scores = scores
        self._part = lru_cache(maxsize=2)(self._read)

    def of(self, row: int) -> Floats:
        """Float64[ndarray, "m"], the terms of a sample; NaN for one without influence."""
        if self._scores.path is None:
            terms: Floats = self._scores.terms[row]
            return terms
        part, place = divmod(row, int(self._scores.metadata["part_rows"]))
        return np.array([column[place] for column in self._part(part)])

    def _read(self, part: int) -> list[Any]:
        names = term_names(self._scores.steps, self._scores.metadata["terms"])
        assert self._scores.path is not None
        table = FolderParts(self._scores.path).read(part, names)
        return [to_numpy(table.column(name)) for name in names]
