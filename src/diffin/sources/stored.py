"""Data sets in files of many samples: many read at once, then each decoded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from diffin.errors import UnreadableError
from diffin.sources.base import Indices
from diffin.sources.unreadable import Unreadable, reason_of


class Stored(Dataset[Any], ABC):
    """A map-style data set of samples that lie in files.

    Reading brings what is stored of many samples, decoding makes an item of one. Nothing stays open between two calls, so
    that it may be pickled, forked, and read by several threads.
    """

    @abstractmethod
    def __len__(self) -> int:
        """The number of samples."""

    @abstractmethod
    def read(self, positions: Sequence[int]) -> list[Any]:
        """What is stored of each sample, or an :class:`Unreadable`, in the order of ``positions``, which are in range."""

    @abstractmethod
    def decoded(self, stored: Any) -> Any:
        """The item of what is stored. Any error but of memory and of missing packages makes the sample unreadable."""

    @abstractmethod
    def keys(self, positions: Sequence[int] | Indices) -> list[str]:
        """What each sample is called where it is stored."""

    def __getitem__(self, position: int) -> Any:
        """
        Raises:
            UnreadableError: the sample cannot be read, or not decoded.
            IndexError: there is none at that position.
        """
        (item,) = self.items([position])
        if isinstance(item, Unreadable):
            raise UnreadableError(item.reason)
        return item

    def __getitems__(self, positions: Sequence[int]) -> list[Any]:
        """Many items, in the order of ``positions``; in place of one that cannot be read, an :class:`Unreadable`."""
        return self.items(positions)

    def items(self, positions: Sequence[int], before: Callable[[int], None] | None = None) -> list[Any]:
        """As ``__getitems__``.

        Args:
            positions: into the data set.
            before: called before each is decoded, with its place in ``positions``; e.g. to seed what a random transform
                draws from.
        """
        wanted = self._in_range(positions)
        found = self.read(wanted)
        for place, stored in enumerate(found):
            if isinstance(stored, Unreadable):
                continue
            if before is not None:
                before(place)
            # In its place, so that what was read is not held any longer.
            found[place] = self._item(stored)
        return found

    def _item(self, stored: Any) -> Any:
        try:
            return self.decoded(stored)
        except (MemoryError, ImportError):
            raise
        except Exception as error:
            return Unreadable(self._told(error, stored))

    def _told(self, error: Exception, stored: Any) -> str:
        told = reason_of(error)
        if isinstance(error, KeyError) and isinstance(stored, dict):
            told += f" (there is {', '.join(map(str, stored)) or 'nothing'})"
        return told

    def _in_range(self, positions: Sequence[int] | Indices) -> list[int]:
        length = len(self)
        wanted: list[int] = np.asarray(positions, dtype=np.int64).tolist()
        for position in wanted:
            if not -length <= position < length:
                raise IndexError(f"position {position} of a data set of {length} samples")
        return [position % length for position in wanted]
