"""A dataset whose items hold their index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.utils.data import Dataset

from diffin.batches import Batch
from diffin.errors import DatasetError
from diffin.sources.base import Collate
from diffin.sources.kinds import is_map_style
from diffin.sources.stored import Stored
from diffin.sources.unreadable import Unreadable


class Indexed(Dataset[Any]):
    """A dataset whose items also hold their index, for loops that tell a recorder which samples a step used.

    An item that is a tuple or list becomes ``(*item, index)``, any other item ``(item, index)``. Scoring takes the
    wrapped dataset as well as the bare one.

    Args:
        dataset: map-style: with ``__getitem__`` and ``__len__``.

    Raises:
        DatasetError: ``dataset`` is not map-style.
    """

    def __init__(self, dataset: Any) -> None:
        if not is_map_style(dataset):
            raise DatasetError(
                f"Indexed needs a map-style dataset, with __getitem__ and __len__, and got {type(dataset).__name__}; "
                "yield the index from your iterable instead, and score it without"
            )
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return with_index(self.dataset[index], index)

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Many items; in place of one that cannot be read, an :class:`diffin.sources.Unreadable`."""
        if not isinstance(self.dataset, Stored):
            return [self[index] for index in indices]
        return [with_index(*both) for both in zip(self.dataset.__getitems__(indices), indices, strict=True)]


def with_index(item: Any, index: int) -> Any:
    """An item of :class:`Indexed`; what stands for one that cannot be read stays as it is."""
    if isinstance(item, Unreadable):
        return item
    return (*item, index) if isinstance(item, (tuple, list)) else (item, index)


class WithoutIndex:
    """A collate function written for the items of :class:`Indexed`, with the indices taken off the batch."""

    def __init__(self, collate: Collate) -> None:
        self._collate = collate

    def __call__(self, samples: list[Any]) -> Batch:
        batch = self._collate(samples)
        indices = [sample[-1] for sample in samples]
        if not isinstance(batch, (tuple, list)) or len(batch) < 2 or list(map(int, batch[-1])) != indices:
            raise DatasetError(
                "the DataLoader reads an Indexed dataset through a collate function that does not put the indices last "
                "in the batch; pass the bare dataset, and collate= a function for its items"
            )
        return batch[0] if len(batch) == 2 else tuple(batch[:-1])
