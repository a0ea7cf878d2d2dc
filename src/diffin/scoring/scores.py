"""Scores: what was found for every sample, read when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffin.errors import ScoringError
from diffin.scoring import columns, frames
from diffin.scoring.columns import Floats
from diffin.scoring.manifest import Manifest
from diffin.scoring.sink import MANIFEST, FolderParts, Parts
from diffin.scoring.stability import MAX_ROWS, Stability, stability
from diffin.sources import Indices

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


_MOST_NAMED = 100_000


class Scores:
    """The influence of every sample of a dataset. Made by :func:`diffin.score`, or opened with :meth:`open`.

    Influence is the effect of *training on the sample* on the loss of the query: negative helps, positive harms.
    Columns are read when they are asked for, so keep the folder while the scores are in use.
    """

    def __init__(self, parts: Parts, manifest: Manifest) -> None:
        self._parts = parts
        self._manifest = manifest

    @classmethod
    def open(cls, path: str | Path) -> Scores:
        """Open complete scores from a folder.

        Raises:
            ScoringError: there are none, they are not complete, or a part is missing, damaged or out of place (it is
                named).
        """
        parts = FolderParts(path)
        manifest = parts.manifest()
        if manifest is None:
            raise ScoringError(f"{path} holds no scores ({MANIFEST} is missing); pass the output of diffin.score")
        if manifest.rows is None or manifest.parts is None:
            raise ScoringError(
                f"the scores in {path} are not complete: {len(parts.finished())} parts of {manifest.part_rows} samples "
                "are there; score again with the same output to go on"
            )
        for number in range(manifest.parts):
            start = number * manifest.part_rows
            _check_index(parts, number, start, min(start + manifest.part_rows, manifest.rows))
        return cls(parts, manifest)

    @property
    def path(self) -> Path | None:
        """The folder that holds the scores, ``None`` for scores in memory."""
        return self._parts.path if isinstance(self._parts, FolderParts) else None

    @property
    def metadata(self) -> dict[str, Any]:
        """How the scores were computed, as in ``scores.json``."""
        return self._manifest.to_json()

    @property
    def steps(self) -> tuple[int, ...]:
        """Steps taken before each checkpoint, or the number of each training; the columns of :attr:`terms`."""
        return self._manifest.steps

    @property
    def index(self) -> Indices:
        """Int64[ndarray, "N"], positions in the dataset, ascending."""
        return np.arange(len(self), dtype=np.int64)

    @cached_property
    def influence(self) -> Floats:
        """Float64[ndarray, "N"], negative helps, positive harms; NaN for a failed sample."""
        return self._column("influence")

    @cached_property
    def standard_error(self) -> Floats:
        """Float64[ndarray, "N"], of the influence.

        Over trainings where there are several, else over checkpoints and proxy batches; NaN with one of them, and for
        estimators that follow one training whole.
        """
        return self._column("standard_error")

    @cached_property
    def loss(self) -> Floats:
        """Float64[ndarray, "N"], the sample's own loss, mean over checkpoints; NaN where it is not finite."""
        return self._column("loss")

    @cached_property
    def terms(self) -> Floats:
        """Float64[ndarray, "N m"], what each checkpoint, or training, contributes; the influence is their sum."""
        return np.stack([self._column(name) for name in self._terms], axis=1)

    @cached_property
    def failed(self) -> Indices:
        """Int64[ndarray, "failed"], samples whose loss or influence is not finite."""
        if self._manifest.failed_count == len(self._manifest.failed):
            return np.array(self._manifest.failed, dtype=np.int64)
        return np.flatnonzero(np.isnan(self.influence)).astype(np.int64)

    @property
    def keys(self) -> list[str] | None:
        """The key of every sample, ``None`` where samples have none of their own."""
        return self._texts("key") if self._manifest.keyed else None

    @property
    def failures(self) -> dict[int, str]:
        """Why a sample has no influence, by its index; of samples that have keys, else nothing is known."""
        if not self._manifest.keyed:
            return {}
        found: dict[int, str] = {}
        for number in range(self._count):
            table = self._parts.read(number, ["index", "failure"])
            table = table.filter(table.column("failure").is_valid())
            found.update(zip(table.column("index").to_pylist(), table.column("failure").to_pylist(), strict=True))
        return found

    @property
    def table(self) -> pa.Table:
        """All columns as an Arrow table."""
        import pyarrow as pa

        names = self._manifest.columns
        return pa.concat_tables([self._parts.read(number, names) for number in range(self._count)])

    def to_pandas(self) -> pd.DataFrame:
        """All columns as a pandas table, a row for every sample in the order of the dataset; NaN for a failed one.

        Raises:
            MissingDependencyError: pandas is not installed.
        """
        return frames.to_pandas(self.table)

    def to_polars(self) -> Any:
        """All columns as a ``polars.DataFrame``, a row for every sample in the order of the dataset; null for a failed one.

        Raises:
            MissingDependencyError: Polars is not installed.
        """
        return frames.to_polars(self.table)

    def add_to(self, dataset: Any, columns: Sequence[str] = ("influence", "standard_error", "loss")) -> Any:
        """A Hugging Face dataset with scores as further columns; the one that is given stays as it is.

        Args:
            dataset: the one that was scored, in that order: a ``datasets.Dataset`` of as many rows.
            columns: which to add, of ``scores.table.column_names``; NaN for a failed sample.

        Raises:
            ScoringError: it is something else, of another length, or has such a column already; or there is no such score.
        """
        return frames.with_columns(dataset, self.table, columns)

    @cached_property
    def stability(self) -> Stability:
        """How far the ranking would change with other checkpoints or trainings, from 100,000 samples at most."""
        if self._manifest.terms == "parts":
            return Stability(len(self.steps), None, None, "parts")
        rows = self.index
        if len(rows) > MAX_ROWS:
            rows = np.sort(np.random.default_rng(0).choice(len(rows), MAX_ROWS, replace=False))
        pieces = []
        for number in range(self._count):
            start = number * self._manifest.part_rows
            table = self._parts.read(number, self._terms)
            inside = rows[(rows >= start) & (rows < start + table.num_rows)] - start
            pieces.append(np.stack([columns.to_numpy(column)[inside] for column in table.columns], axis=1))
        return stability(np.concatenate(pieces), kind=self._manifest.terms)

    def most_harmful(self, k: int = 10) -> Indices:
        """Int64[ndarray, "k"], the samples of largest influence, most harmful first; failed ones are left out."""
        return self._ranked(-self.influence, k)

    def most_helpful(self, k: int = 10) -> Indices:
        """Int64[ndarray, "k"], the samples of smallest influence, most helpful first; failed ones are left out."""
        return self._ranked(self.influence, k)

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the scores into a folder, from which :meth:`open` reads them.

        Args:
            path: the folder, made if absent.
            overwrite: replace scores that are there already.

        Raises:
            ScoringError: there are scores already, or the folder cannot be written.
        """
        target = FolderParts(path)
        if self.path is not None and self.path.resolve() == target.path.resolve():
            return target.path
        target.prepare()
        if overwrite:
            target.clear()
        elif target.manifest() is not None:
            raise ScoringError(f"{path} holds scores already; pass another folder, or overwrite=True to replace them")
        for number in range(self._count):
            target.write(number, self._parts.read(number, self._manifest.columns))
        # Last, so that a folder with a manifest is a folder with scores.
        target.write_manifest(self._manifest)
        return target.path

    def __len__(self) -> int:
        """The number of samples."""
        return self._manifest.rows or 0

    def __repr__(self) -> str:
        failed = f", {self._manifest.failed_count} failed" if self._manifest.failed_count else ""
        where = "in memory" if self.path is None else f"in {str(self.path)!r}"
        of = "runs" if self._manifest.terms == "runs" else "checkpoints"
        return f"Scores({len(self)} samples, {len(self.steps)} {of}{failed}, {where})"

    def _repr_html_(self) -> str:
        from diffin import notebook

        return notebook.ranking(self)

    @property
    def _terms(self) -> list[str]:
        return columns.term_names(self._manifest.steps, self._manifest.terms)

    @property
    def _count(self) -> int:
        return self._manifest.parts or 0

    def _column(self, name: str) -> Floats:
        parts = [self._parts.read(number, [name]).column(0) for number in range(self._count)]
        return np.concatenate([columns.to_numpy(part) for part in parts])

    def _texts(self, name: str) -> list[str]:
        return [
            text for number in range(self._count) for text in self._parts.read(number, [name]).column(0).to_pylist()
        ]

    def _ranked(self, keys: Floats, k: int) -> Indices:
        if k < 0:
            raise ScoringError(f"k={k}; pass the number of samples wanted")
        # NaN sorts last, so failed samples are cut off; equal ones stay in the order of the dataset.
        order = np.argsort(keys, kind="stable")[: len(keys) - int(np.isnan(keys).sum())]
        return order[:k].astype(np.int64)


def _check_index(parts: FolderParts, number: int, start: int, stop: int) -> None:
    """Refuse a part that does not hold exactly the samples ``start`` to ``stop - 1``, in order."""
    found = parts.read(number, ["index"]).column(0).to_numpy()
    # What it should hold is only what it says: no more memory for that than for what is there.
    expected = np.arange(start, min(stop, start + len(found) + _MOST_NAMED))
    if len(found) == stop - start and np.array_equal(found, expected[: len(found)]):
        return
    missing, extra = np.setdiff1d(expected, found), np.setdiff1d(found, expected)
    values, counts = np.unique(found, return_counts=True)
    problems = [
        f"{what} {_some(indices.tolist())}"
        for what, indices in (("lacks", missing), ("repeats", values[counts > 1]), ("holds foreign", extra))
        if len(indices)
    ]
    raise ScoringError(
        f"part {number} of the scores in {parts.path} should hold samples {start} to {stop - 1} and "
        f"{' and '.join(problems) or 'has them in another order'}; delete that part and score again with the same "
        "output"
    )


def _some(indices: Sequence[int]) -> str:
    shown = ", ".join(map(str, indices[:5]))
    return f"{len(indices)} samples ({shown}{', ...' if len(indices) > 5 else ''})"
