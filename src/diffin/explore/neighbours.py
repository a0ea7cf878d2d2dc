"""Between queries and training samples: who helped whom, and who harmed."""

from __future__ import annotations

from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from diffin.attribution import Attribution
from diffin.explore.columns import finite
from diffin.scoring.columns import Floats
from diffin.sources import Indices


class Neighbours:
    """An attribution, read from both of its sides.

    Args:
        attribution: of queries to training samples.
    """

    def __init__(self, attribution: Attribution) -> None:
        self._found = attribution
        self._part = lru_cache(maxsize=2)(self._read)

    def __len__(self) -> int:
        """Q, the number of queries."""
        return len(self._found)

    @property
    def grouped(self) -> bool:
        """Whether queries are groups, which have no sample to show."""
        return self._found.grouped

    @property
    def complete(self) -> bool:
        """Whether the influence of every sample on every query was kept."""
        return self._found.path is not None and bool(self._found.metadata["matrix"])

    def query(self, place: int) -> dict[str, Any]:
        """The proponents and opponents of the query at a place, strongest first, each as index and influence."""
        found = self._found
        return {
            "place": place,
            "query": int(found.queries[place]),
            "proponents": _pairs(found.proponents[place], found.proponent_influence[place]),
            "opponents": _pairs(found.opponents[place], found.opponent_influence[place]),
        }

    def sample(self, row: int, most: int = 8) -> dict[str, Any]:
        """The queries that a training sample helps most and those that it harms most, each as place, query and influence.

        From the matrix where it was kept, else from the lists of proponents and opponents: then queries among whose
        strongest the sample is not are not known.
        """
        places, influence = self._of(row)
        order = np.argsort(influence, kind="stable")
        helped = [k for k in order[:most] if influence[k] < 0]
        harmed = [k for k in order[::-1][:most] if influence[k] > 0]
        return {"helped": self._queries(places, influence, helped), "harmed": self._queries(places, influence, harmed)}

    def _queries(self, places: Indices, influence: Floats, chosen: list[Any]) -> list[list[Any]]:
        return [[int(places[k]), int(self._found.queries[places[k]]), finite(influence[k])] for k in chosen]

    def _of(self, row: int) -> tuple[Indices, Floats]:
        if self.complete:
            part, place = divmod(row, int(self._found.metadata["part_rows"]))
            influence = self._part(part)[place].astype(np.float64)
            known = np.flatnonzero(np.isfinite(influence))
            return known, influence[known]
        samples, places, influence = self._listed
        first, last = np.searchsorted(samples, (row, row + 1))
        # Where a list reaches past the middle, a sample is on both lists of a query, with one influence.
        chosen, kept = np.unique(places[first:last], return_index=True)
        return chosen, influence[first:last][kept]

    @cached_property
    def _listed(self) -> tuple[Indices, Indices, Floats]:
        """All entries of all lists by sample: sample, place of the query, influence."""
        found = self._found
        samples = np.concatenate([found.proponents.ravel(), found.opponents.ravel()])
        influence = np.concatenate([found.proponent_influence.ravel(), found.opponent_influence.ravel()])
        places = np.concatenate([np.repeat(np.arange(len(found)), found.proponents.shape[1])] * 2)
        order = np.argsort(samples, kind="stable")
        return samples[order], places[order], influence[order]

    def _read(self, part: int) -> Any:
        return self._found.matrix_part(part)[1]


def _pairs(indices: Indices, influence: Floats) -> list[list[Any]]:
    return [[int(index), finite(value)] for index, value in zip(indices, influence, strict=True)]
