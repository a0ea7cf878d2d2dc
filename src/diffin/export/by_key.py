"""Choosing samples by their keys instead of their positions."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from diffin.errors import DatasetError
from diffin.export.chosen import Chosen
from diffin.export.data import Data

_LISTED = 3


def chosen_by_key(data: Data, keys: Iterable[str]) -> Chosen:
    """The samples with these keys, in the order of the data.

    Args:
        data: see :func:`diffin.export.open_data`.
        keys: of those that stay.

    Raises:
        DatasetError: no sample has one of them, or two samples have the same.
    """
    wanted = {str(key) for key in keys}
    seen: set[str] = set()
    index = []
    for position, key in enumerate(data.keys()):
        if key not in wanted:
            continue
        if key in seen:
            raise DatasetError(
                f"two samples of {data.where} have the key {key!r}, so which one stays is open; name a column of ids with "
                "key_column, or choose by position"
            )
        seen.add(key)
        index.append(position)
    if len(seen) < len(wanted):
        missing = sorted(wanted - seen)
        raise DatasetError(
            f"{len(missing):,} of {len(wanted):,} keys are of no sample of {data.where}, "
            f"{', '.join(map(repr, missing[:_LISTED]))} first; pass the data that they were taken from, or its key_column"
        )
    return Chosen(data.size, np.array(index, dtype=np.int64))
