"""The training set that is left: which samples, under which labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diffin.actions.clean.decisions import Decision
from diffin.actions.clean.suspects import Suspects
from diffin.files import write_atomically
from diffin.sources import Indices


def cleaned(suspects: Suspects, threshold: float = 0.5, decisions: Sequence[Decision] = ()) -> tuple[Indices, Indices]:
    """What is kept, and its labels.

    A decision about a sample is followed. Of the others, those whose label is wrong with at least ``threshold`` are left out.

    Args:
        suspects: what is doubted.
        threshold: a probability; above 1 to follow the decisions alone.
        decisions: of a person.

    Returns:
        Positions in the dataset, Int64[ndarray, "n"], ascending, and labels, Int64[ndarray, "n"].
    """
    labels = suspects.given.copy()
    keep = np.isin(suspects.index, suspects.kept(threshold)) if threshold <= 1 else np.ones(len(suspects), dtype=bool)
    rows = suspects.rows
    for decision in decisions:
        row = rows[decision.index]
        keep[row] = decision.verdict != "drop"
        if decision.label is not None:
            labels[row] = decision.label
    return suspects.index[keep], labels[keep]


def write_cleaned(path: Path, index: Indices, labels: Indices) -> None:
    """Write a cleaned index as Parquet, columns ``index`` and ``label``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with write_atomically(path) as part:
        pq.write_table(pa.table({"index": index, "label": labels}), part)
