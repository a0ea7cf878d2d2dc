"""The columns of a table of scores, and what is computed from what was measured.

With ``x_c`` the term of checkpoint c (weight times measured derivative, summed over its probes) and m checkpoints,

    influence      = sum_c x_c
    standard_error = sqrt( m / (m - 1) * sum_c (x_c - mean x)^2 ),

the standard error of a sum of m terms taken as m independent draws; the noise of the proxy batches is in the terms. Where
the terms are parts of one derivative, which differ because training differs, there is no such error. Of R trainings, each
term is the influence by one of them over R, so that the same formula is the standard error of their mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from diffin.sources import Indices

if TYPE_CHECKING:
    import pyarrow as pa

Floats = npt.NDArray[np.float64]

Terms = Literal["draws", "parts", "runs"]
"""What the terms of an influence are: checkpoints that were sampled from a training, its parts, or whole trainings."""

_LEADING = ("index", "influence", "standard_error", "loss")
_KEYED = ("index", "key", "influence", "standard_error", "loss", "failure")

NOT_FINITE = "its loss or a derivative is not finite"


@dataclass(frozen=True)
class Rows:
    """What was measured of B samples at m checkpoints.

    Attributes:
        index: Int64[ndarray, "B"], positions in the dataset.
        losses: Float64[ndarray, "B m"], the sample's own loss, averaged over the probes of a checkpoint.
        terms: Float64[ndarray, "B m"], weight times derivative, summed over the probes of a checkpoint.
    """

    index: Indices
    losses: Floats
    terms: Floats

    def at(self, positions: Indices) -> Rows:
        """Some of the rows, in that order."""
        return Rows(self.index[positions], self.losses[positions], self.terms[positions])


def joined(parts: Sequence[Rows]) -> Rows:
    """The rows of all ``parts``, in order."""
    return Rows(
        np.concatenate([rows.index for rows in parts]),
        np.concatenate([rows.losses for rows in parts]),
        np.concatenate([rows.terms for rows in parts]),
    )


def standard_error(terms: Floats) -> Floats:
    """Standard error of the sum of each row's m terms. Float64[ndarray, "B"], NaN for m = 1."""
    count = terms.shape[1]
    if count < 2:
        return np.full(len(terms), np.nan)
    deviations = terms - terms.mean(axis=1, keepdims=True)
    error: Floats = np.sqrt(count / (count - 1) * np.square(deviations).sum(axis=1))
    return error


def term_names(steps: Sequence[int], kind: Terms = "draws") -> list[str]:
    """The columns of the terms: one for each checkpoint or run."""
    return [f"{'run' if kind == 'runs' else 'step'}_{step}" for step in steps]


def names(steps: Sequence[int], kind: Terms = "draws", *, keyed: bool = False) -> list[str]:
    """Column names, in order: the leading ones, then the terms."""
    return [*(_KEYED if keyed else _LEADING), *term_names(steps, kind)]


def column_type(name: str) -> pa.DataType:
    """Of a column of a table of scores."""
    import pyarrow as pa

    return pa.int64() if name == "index" else pa.string() if name in ("key", "failure") else pa.float64()


def to_table(
    rows: Rows,
    steps: Sequence[int],
    kind: Terms = "draws",
    *,
    keys: Sequence[str] | None = None,
    failures: Mapping[int, str] | None = None,
) -> pa.Table:
    """Rows as an Arrow table.

    A sample with a loss, term or sum that is not finite keeps its row, with nulls in place of every number but a finite
    loss.

    Args:
        rows: what was measured.
        steps: of the checkpoints.
        kind: what the terms are.
        keys: the key of each row, where samples have keys; then a column says of each sample why it has no influence.
        failures: the reasons that are known, by index.
    """
    import pyarrow as pa

    with np.errstate(over="ignore", invalid="ignore"):
        influence = rows.terms.sum(axis=1)
        errors = standard_error(rows.terms) if kind != "parts" else np.full(len(influence), np.nan)
        loss = rows.losses.mean(axis=1)
    failed = ~(np.isfinite(influence) & np.isfinite(loss))
    columns = {
        "index": pa.array(rows.index),
        "influence": pa.array(influence, mask=failed),
        "standard_error": pa.array(errors, mask=failed | ~np.isfinite(errors)),
        "loss": pa.array(loss, mask=~np.isfinite(loss)),
    }
    for name, term in zip(term_names(steps, kind), rows.terms.T, strict=True):
        columns[name] = pa.array(np.ascontiguousarray(term), mask=failed)
    if keys is not None:
        known = failures or {}
        reasons = [
            known.get(index, NOT_FINITE) if bad else None
            for index, bad in zip(rows.index.tolist(), failed.tolist(), strict=True)
        ]
        columns |= {"key": pa.array(keys, pa.string()), "failure": pa.array(reasons, pa.string())}
    return pa.table(columns).select(names(steps, kind, keyed=keys is not None))


def to_numpy(column: pa.ChunkedArray) -> Floats:
    """A nullable column in float64, NaN for null."""
    import pyarrow as pa

    values: Floats = column.cast(pa.float64()).to_numpy()
    return values
