"""The columns that are there before any sample has been read: of scores, suspects and keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from diffin.actions.clean.single import SIGNALS
from diffin.errors import DatasetError
from diffin.explore.columns import Category, Numbers, Table, Texts

if TYPE_CHECKING:
    from diffin.actions.clean import Suspects
    from diffin.scoring.scores import Scores

_SUSPECTS = "suspects"


def gather(scores: Scores, suspects: Suspects | None) -> Table:
    """Influence, its size, its standard error and the loss; of suspects the doubt, all signals and the classes; keys.

    Raises:
        DatasetError: the suspects are about other samples.
    """
    influence, error = scores.influence, scores.standard_error
    table = Table(len(scores))
    table.numbers = {
        "influence": Numbers("influence", influence),
        "magnitude": Numbers("influence, either sign", np.abs(influence)),
        "loss": Numbers("mean loss", scores.loss),
    }
    if np.isfinite(error).any():
        table.numbers["standard_error"] = Numbers("standard error", error)
    if scores.keys is not None:
        table.texts["key"] = Texts(scores.keys)
    if suspects is not None:
        _add_suspects(table, suspects)
    return table


def _add_suspects(table: Table, suspects: Suspects) -> None:
    if len(suspects) != table.size or not np.array_equal(suspects.index, np.arange(table.size)):
        raise DatasetError(
            f"the suspects are about {len(suspects)} samples, and the scores about {table.size}; pass those of one training "
            "set"
        )
    names = [str(code) for code in range(len(suspects.confusion))]
    table.categories["label"] = Category("label", suspects.given.astype(np.int32), names)
    table.categories["suggested"] = Category("suggested by clean", suspects.suggested.astype(np.int32), names)
    table.numbers["probability"] = Numbers(
        "label is wrong", np.asarray(suspects.probability, dtype=np.float64), _SUSPECTS
    )
    for name, values in suspects.signals.items():
        numbers = np.asarray(values, dtype=np.float64)
        table.numbers[f"signal:{name}"] = Numbers(
            name.replace("_", " "), numbers, "signals of clean", SIGNALS.get(name, 1) > 0
        )
