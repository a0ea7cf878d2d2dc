"""What a pairwise attribution found: for every query the samples that helped and harmed it most."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from diffin.attribution.store import (
    MANIFEST,
    TOP,
    Manifest,
    Store,
    damaged,
    from_table,
    matrix_types,
    read_table,
    top_types,
)
from diffin.attribution.tops import Tops
from diffin.errors import ScoringError
from diffin.scoring.columns import Floats
from diffin.sources import Indices


class Attribution:
    """The strongest proponents and opponents of Q queries. Made by :func:`diffin.attribute`, or opened with :meth:`open`.

    Influence is the effect of *training on the sample* on the loss of the query: negative helps (a proponent), positive
    harms (an opponent). With k of each asked for and N samples, both lists hold min(k, N) samples less the failed ones, so
    that where few samples harm a query, the last of its opponents help it a little, as their sign says.

    Attributes:
        path: the folder it is kept in; ``None`` in memory.
    """

    def __init__(self, tops: Tops, manifest: Manifest, path: Path | None) -> None:
        self._tops, self._manifest, self.path = tops, manifest, path

    @classmethod
    def open(cls, path: str | Path) -> Attribution:
        """Open a complete attribution from a folder.

        Raises:
            ScoringError: there is none, it is not complete, or a file is missing or damaged.
        """
        store = Store(path)
        manifest = store.manifest()
        if manifest is None:
            raise ScoringError(
                f"{path} holds no attribution ({MANIFEST} is missing); pass the output of diffin.attribute"
            )
        if manifest.rows is None:
            raise ScoringError(
                f"the attribution in {path} is not complete: {len(store.finished())} parts of {manifest.part_rows} samples "
                "are there; attribute again with the same output to go on"
            )
        file = Path(path) / TOP
        table = read_table(file, top_types())
        try:
            tops = from_table(table)
        except ValueError as error:
            raise damaged(file, error) from None
        ends = tops.proponents.index, tops.opponents.index
        if any(len(end) != len(manifest.queries) or end.min() < 0 or end.max() >= manifest.rows for end in ends):
            raise damaged(file, ValueError("it is of other queries or samples"))
        return cls(tops, manifest, Path(path))

    @property
    def proponents(self) -> Indices:
        """Int64[ndarray, "Q k"], the samples that help each query most, strongest first."""
        return self._tops.proponents.index

    @property
    def proponent_influence(self) -> Floats:
        """Float64[ndarray, "Q k"], ascending."""
        return self._tops.proponents.influence

    @property
    def opponents(self) -> Indices:
        """Int64[ndarray, "Q k"], the samples that harm each query most, strongest first."""
        return self._tops.opponents.index

    @property
    def opponent_influence(self) -> Floats:
        """Float64[ndarray, "Q k"], descending."""
        return self._tops.opponents.influence

    @cached_property
    def queries(self) -> Indices:
        """Int64[ndarray, "Q"], the position of each query in the query set, or the label of its group."""
        return np.array(self._manifest.queries, dtype=np.int64)

    @property
    def grouped(self) -> bool:
        """Whether the queries are groups."""
        return self._manifest.grouped

    @cached_property
    def failed(self) -> Indices:
        """Int64[ndarray, "failed"], samples whose loss or influence is not finite; they are in no list."""
        return np.array(self._manifest.failed, dtype=np.int64)

    @property
    def metadata(self) -> dict[str, Any]:
        """How it was computed, as in ``attribution.json``."""
        return self._manifest.to_json()

    @property
    def samples(self) -> int:
        """N, the number of training samples that were measured."""
        return self._manifest.rows or 0

    def matrix(self) -> Iterator[tuple[Indices, npt.NDArray[np.float32]]]:
        """The influence of every sample on every query, part by part.

        Yields:
            Int64[ndarray, "rows"] and Float32[ndarray, "rows Q"], NaN for a failed sample.

        Raises:
            ScoringError: it was not asked for, or a part is missing or damaged.
        """
        for number in range(-(-self.samples // self._manifest.part_rows)):
            yield self.matrix_part(number)

    def matrix_part(self, number: int) -> tuple[Indices, npt.NDArray[np.float32]]:
        """The influence of the samples of one part on every query, as :meth:`matrix` yields it.

        Raises:
            ScoringError: the matrix was not asked for, or the part is missing or damaged.
        """
        if self.path is None or not self._manifest.matrix:
            raise ScoringError("the matrix was not kept; attribute with matrix=True and an output")
        file = self.path / "matrix" / f"part-{number:05d}.parquet"
        table = read_table(file, matrix_types(len(self)))
        flat = table.column("influence").combine_chunks().flatten().to_numpy(zero_copy_only=False)
        index, start = table.column("index").to_numpy(), number * self._manifest.part_rows
        expected = min(self._manifest.part_rows, self.samples - start)
        if (
            len(flat) != len(index) * len(self)
            or len(index) != expected
            or (index != start + np.arange(expected)).any()
        ):
            raise damaged(file, ValueError(f"it does not hold {expected} samples from {start} on"))
        return index, flat.reshape(expected, len(self))

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write it into a folder, from which :meth:`open` reads it; the matrix too, if there is one.

        Args:
            path: the folder, made if absent.
            overwrite: replace an attribution that is there already.

        Raises:
            ScoringError: there is one already, or the folder cannot be written.
        """
        target = Store(path)
        place = Path(path)
        if self.path is not None and self.path.resolve() == place.resolve():
            return place
        if overwrite:
            target.clear()
        elif target.manifest() is not None:
            raise ScoringError(
                f"{path} holds an attribution already; pass another folder, or overwrite=True to replace it"
            )
        target.prepare()
        if self.path is not None and self._manifest.matrix:
            target.copy_matrix(self.path, -(-self.samples // self._manifest.part_rows))
        target.finish(self._manifest, self._tops)
        return place

    def __len__(self) -> int:
        """Q, the number of queries."""
        return len(self._manifest.queries)

    def __repr__(self) -> str:
        what = "groups" if self.grouped else "queries"
        failed = f", {len(self.failed)} failed" if len(self.failed) else ""
        where = "in memory" if self.path is None else f"in {str(self.path)!r}"
        return (
            f"Attribution({len(self)} {what} x {self.samples} samples, top {self.proponents.shape[1]}{failed}, {where})"
        )
