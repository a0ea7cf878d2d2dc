"""A data set with ids of its samples."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset, Subset

from diffin.errors import DatasetError
from diffin.sources.base import Indices
from diffin.sources.indexed import Indexed
from diffin.sources.kinds import is_map_style

Keys = Callable[[Sequence[int] | Indices], list[str]]


class Keyed(Dataset[Any]):
    """A map-style data set, and what each of its samples is called; tables of scores then say it.

    Args:
        dataset: with ``__getitem__`` and ``__len__``.
        keys: the id of every sample: a list, array or column, or a function of the position.

    Raises:
        DatasetError: ``dataset`` is not map-style, or there is not one id for each sample.
    """

    def __init__(self, dataset: Any, keys: Any) -> None:
        if not is_map_style(dataset):
            raise DatasetError(
                f"Keyed needs a map-style dataset, with __getitem__ and __len__, and got {type(dataset).__name__}"
            )
        if not callable(keys) and len(keys) != len(dataset):
            raise DatasetError(f"keys holds {len(keys)} ids for {len(dataset)} samples; pass one of each sample")
        self.dataset, self.ids = dataset, keys

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, position: int) -> Any:
        return self.dataset[position]

    def keys(self, positions: Sequence[int] | Indices) -> list[str]:
        wanted = np.asarray(positions, dtype=np.int64).tolist()
        found = [self.ids(position) if callable(self.ids) else self.ids[position] for position in wanted]
        return [str(getattr(one, "as_py", lambda one=one: one)()) for one in found]


def keys_of(dataset: Any) -> Keys | None:
    """What tells the ids of the samples at some positions; ``None`` if the data set has none."""
    if isinstance(dataset, Indexed):
        return keys_of(dataset.dataset)
    if isinstance(dataset, Subset):
        inner, indices = keys_of(dataset.dataset), dataset.indices
        return None if inner is None else lambda positions: inner([indices[position] for position in positions])
    found = getattr(dataset, "keys", None)
    if isinstance(dataset, Mapping) or not callable(found):
        return None
    # Others have a method of that name which needs nothing, as dictionaries have.
    if not _takes(found, []) or _takes(found):
        return None
    keys: Keys = found
    return keys


def _takes(function: Callable[..., Any], *given: Any) -> bool:
    try:
        inspect.signature(function).bind(*given)
    except (TypeError, ValueError):
        return False
    return True
