"""The columns of a table of scores, and what is computed from what was measured.

With ``x_c`` the term of checkpoint c (weight times measured derivative, summed over its probes) and m checkpoints,

    influence      = sum_c x_c
    standard_error = sqrt( m / (m - 1) * sum_c (x_c - mean x)^2 ),

the standard error of a sum of m terms taken as m independent draws; the noise of the proxy batches is in the terms. Where
the terms are parts of one derivative, which differ because training differs, there is no such error. Of R trainings, each
term is the influence by one of them over R, so that the same formula is the standard error of their mean.
"""

from __future__ import annotations

from collections.abc import Sequence
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

LEADING = ("index", "influence", "standard_error", "loss")


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


def names(steps: Sequence[int], kind: Terms = "draws") -> list[str]:
    """Column names, in order: the leading ones, then one term for each checkpoint or run."""
    return [*LEADING, *(f"{'run' if kind == 'runs' else 'step'}_{step}" for step in steps)]


def to_table(rows: Rows, steps: Sequence[int], kind: Terms = "draws") -> pa.Table:
    """Rows as an Arrow table.

    A sample with a loss, term or sum that is not finite keeps its row, with nulls in place of every number but a finite
    loss.
    """
    import pyarrow as pa

    with np.errstate(over="ignore", invalid="ignore"):
        influence = rows.terms.sum(axis=1)
        errors = standard_error(rows.terms) if kind != "parts" else np.full(len(influence), np.nan)
        loss = rows.losses.mean(axis=1)
    failed = ~(np.isfinite(influence) & np.isfinite(loss))
    values = [
        pa.array(rows.index),
        pa.array(influence, mask=failed),
        pa.array(errors, mask=failed | ~np.isfinite(errors)),
        pa.array(loss, mask=~np.isfinite(loss)),
        *(pa.array(np.ascontiguousarray(term), mask=failed) for term in rows.terms.T),
    ]
    return pa.table(values, names=names(steps, kind))


def to_numpy(column: pa.ChunkedArray) -> Floats:
    """A nullable column in float64, NaN for null."""
    import pyarrow as pa

    values: Floats = column.cast(pa.float64()).to_numpy()
    return values
