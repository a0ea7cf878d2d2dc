"""Which labels are doubted: the result of cleaning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffin import checked, reading
from diffin.actions.clean.single import SIGNALS
from diffin.errors import ScoringError
from diffin.files import read_json, write_atomically, write_json
from diffin.scoring.columns import Floats
from diffin.sources import Indices

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 1
MANIFEST, TABLE = "suspects.json", "suspects.parquet"
_WHOLE = ("index", "given", "suggested")
_LEADING = ("index", "given", "suggested", "probability", "suggestion_probability")


@dataclass(frozen=True, eq=False)
class Suspects:
    """The doubt about every label of N samples. Made by :func:`diffin.clean`, or opened with :meth:`open`.

    Attributes:
        index: Int64[ndarray, "N"], positions in the dataset, ascending.
        given: Int64[ndarray, "N"], the class in the dataset.
        suggested: Int64[ndarray, "N"], the likeliest class other than the given one.
        probability: Float64[ndarray, "N"], that the given class is wrong; NaN where the loss of a sample is not finite.
        suggestion_probability: Float64[ndarray, "N"], that the suggested class is the right one.
        signals: single signals by name, each Float64[ndarray, "N"]; see :data:`diffin.actions.clean.SIGNALS`.
        confusion: Float64[ndarray, "C C"], estimated probability of each given class (column) for each correct one (row).
        details: JSON-able: what it was computed from.
    """

    index: Indices
    given: Indices
    suggested: Indices
    probability: Floats
    suggestion_probability: Floats
    signals: Mapping[str, Floats]
    confusion: Floats
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def noise_rate(self) -> float:
        """Estimated share of wrong labels: the mean probability."""
        return float(np.nanmean(self.probability))

    @property
    def failed(self) -> Indices:
        """Int64[ndarray, "failed"], samples about which nothing can be said, because their loss is not finite."""
        return self.index[np.isnan(self.probability)]

    def label_quality(self) -> Floats:
        """Float64[ndarray, "N"], from 0 (surely wrong) to 1: the probability that the given class is right.

        The convention of cleanlab's label quality scores: small is suspicious. NaN where nothing can be said.
        """
        return 1 - self.probability

    def suspects(self, threshold: float = 0.5) -> Indices:
        """Int64[ndarray, "n"], samples whose label is wrong with at least this probability, most probable first.

        Raises:
            ScoringError: the threshold is not between 0 and 1.
        """
        rows = np.flatnonzero(self._doubted(threshold))
        found: Indices = self.index[rows[np.argsort(-self.probability[rows], kind="stable")]]
        return found

    def kept(self, threshold: float = 0.5) -> Indices:
        """Int64[ndarray, "N - n"], all other samples, in the order of the dataset.

        Raises:
            ScoringError: the threshold is not between 0 and 1.
        """
        found: Indices = self.index[~self._doubted(threshold)]
        return found

    def relabelled(self, threshold: float = 0.5) -> Indices:
        """Int64[ndarray, "N"], the given classes, replaced by the suggested one where that is right with this probability.

        Raises:
            ScoringError: the threshold is not between 0 and 1.
        """
        self._doubted(threshold)
        return np.where(self.suggestion_probability >= threshold, self.suggested, self.given)

    def ranking(self, signal: str) -> Floats:
        """Float64[ndarray, "N"], one signal, turned so that large is suspicious.

        Raises:
            ScoringError: it was not computed.
        """
        if signal not in self.signals or signal not in SIGNALS:
            raise ScoringError(f"signal={signal!r} was not computed; there are {', '.join(self.signals)}")
        return SIGNALS[signal] * self.signals[signal]

    @property
    def table(self) -> pa.Table:
        """All columns as an Arrow table."""
        import pyarrow as pa

        columns = {name: getattr(self, name) for name in _LEADING}
        return pa.table({**columns, **self.signals})

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the suspects into a folder, from which :meth:`open` reads them.

        Args:
            path: the folder, made if absent.
            overwrite: replace suspects that are there already.

        Raises:
            ScoringError: there are suspects already, or the folder cannot be written.
        """
        import pyarrow.parquet as pq

        path = Path(path)
        if (path / MANIFEST).exists() and not overwrite:
            raise ScoringError(f"{path} holds suspects already; pass another folder, or overwrite=True to replace them")
        try:
            path.mkdir(parents=True, exist_ok=True)
            (path / MANIFEST).unlink(missing_ok=True)
            with write_atomically(path / TABLE) as part:
                pq.write_table(self.table, part)
            # Last, so that a folder with a manifest is a folder with suspects.
            write_json(
                path / MANIFEST,
                {
                    "format": FORMAT,
                    "rows": len(self),
                    "noise_rate": self.noise_rate if len(self.failed) < len(self) else None,
                    "confusion": self.confusion.tolist(),
                    "details": dict(self.details),
                },
            )
        except OSError as error:
            raise ScoringError(
                f"could not write the suspects to {path} ({error}); free some space, or pass another"
            ) from error
        return path

    @classmethod
    def open(cls, path: str | Path) -> Suspects:
        """Open suspects from a folder.

        Raises:
            ScoringError: there are none, or they are damaged.
        """
        path = Path(path)
        try:
            manifest = read_json(path / MANIFEST)
            if manifest.get("format") != FORMAT:
                raise ScoringError(
                    f"{path} has suspects of format {manifest.get('format')!r}; this version reads {FORMAT}"
                )
            columns = _columns(path / TABLE, checked.whole(manifest, "rows"))
            index, given, suggested, probability, of_suggestion = (columns.pop(name) for name in _LEADING)
            confusion = _square(checked.listed(manifest, "confusion"))
            details = checked.mapping(manifest, "details")
            return cls(index, given, suggested, probability, of_suggestion, columns, confusion, details)
        except FileNotFoundError as error:
            raise ScoringError(f"{path} holds no suspects ({error}); pass the output of diffin clean") from None
        except (OSError, ValueError) as error:
            raise ScoringError(f"the suspects in {path} are damaged ({error}); clean again") from error

    @property
    def rows(self) -> dict[int, int]:
        """The row of every sample, by its index."""
        return {int(index): row for row, index in enumerate(self.index)}

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.index)

    def __repr__(self) -> str:
        return f"Suspects({len(self.suspects())} of {len(self)} samples, noise rate {self.noise_rate:.3f})"

    def _repr_html_(self) -> str:
        from diffin import notebook

        return notebook.doubts(self)

    def _doubted(self, threshold: float) -> Any:
        if not 0 <= threshold <= 1:
            raise ScoringError(f"threshold={threshold}; pass a probability, from 0 to 1")
        return np.nan_to_num(self.probability, nan=-1.0) >= threshold


def _columns(path: Path, rows: int) -> dict[str, Any]:
    """The columns of the table, the leading ones whole numbers and the others fractions.

    Raises:
        ValueError: there are others, or another number of rows.
    """
    import pyarrow as pa

    table = reading.table(path, lambda name: pa.int64() if name in _WHOLE else pa.float64())
    if table.num_rows != rows:
        raise ValueError(f"{table.num_rows} rows for {rows}")
    columns = {}
    for name in table.column_names:
        column = table.column(name)
        if name in _WHOLE and column.null_count:
            raise ValueError(f"{name} has gaps")
        columns[name] = column.to_numpy()
    missing = [name for name in _LEADING if name not in columns]
    if missing:
        raise ValueError(f"it has no column {missing[0]!r}")
    if (columns["index"] < 0).any():
        raise ValueError("index holds a negative number")
    return columns


def _square(rows: list[Any]) -> Floats:
    """A square matrix out of lists of numbers.

    Raises:
        ValueError: they are none.
    """
    numbers = [checked.each({"confusion": row}, "confusion", checked.real) for row in rows]
    if any(len(row) != len(numbers) for row in numbers):
        raise ValueError("'confusion' is no square")
    return np.array(numbers, dtype=np.float64).reshape(len(numbers), len(numbers))
