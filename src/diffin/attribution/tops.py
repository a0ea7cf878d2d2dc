"""The strongest few of many samples, for Q queries at once, kept while the others pass by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffin.scoring.columns import Floats
from diffin.sources import Indices


@dataclass(frozen=True)
class Ranked:
    """Samples at one end of the influence on each query, strongest first; of equal ones, the lower index first.

    Attributes:
        index: Int64[ndarray, "Q k"], of the samples.
        influence: Float64[ndarray, "Q k"].
    """

    index: Indices
    influence: Floats

    def cut(self, count: int, *, largest: bool) -> Ranked:
        """The strongest ``count``, in order."""
        keys = -self.influence if largest else self.influence
        order = np.lexsort((self.index, keys), axis=1)[:, :count]
        return Ranked(np.take_along_axis(self.index, order, 1), np.take_along_axis(self.influence, order, 1))


@dataclass(frozen=True)
class Tops:
    """Both ends.

    Attributes:
        proponents: the samples of smallest influence: those whose training helps the query most.
        opponents: those of largest influence, that harm it most.
    """

    proponents: Ranked
    opponents: Ranked

    @staticmethod
    def of(index: Indices, influence: Floats, count: int) -> Tops:
        """The ends of some samples.

        Args:
            index: Int64[ndarray, "B"].
            influence: Float64[ndarray, "B Q"], finite.
            count: how many of each end; all of them where there are fewer.
        """
        columns = np.ascontiguousarray(influence.T)
        everything = Ranked(np.broadcast_to(index, columns.shape), columns)
        return Tops(everything.cut(count, largest=False), everything.cut(count, largest=True))


def merged(parts: Sequence[Tops], count: int) -> Tops:
    """The ends of the samples of all parts, one at least."""
    total = parts[0]
    for part in parts[1:]:
        ends = [
            Ranked(np.concatenate([a.index, b.index], 1), np.concatenate([a.influence, b.influence], 1))
            for a, b in ((total.proponents, part.proponents), (total.opponents, part.opponents))
        ]
        total = Tops(ends[0].cut(count, largest=False), ends[1].cut(count, largest=True))
    return Tops(total.proponents.cut(count, largest=False), total.opponents.cut(count, largest=True))
