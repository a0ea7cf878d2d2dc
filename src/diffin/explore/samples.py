"""What samples look like: read when they come into sight, and kept while there is room."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from diffin.report.reading import read_items
from diffin.report.samples import Shown, show_item

ROOM = 128 * 2**20
"""Bytes of pictures and texts that are kept, about."""
SHORTEST_WAVE = 4000
"""A sound has at least as many values; a shorter row of numbers is shown as numbers."""
WAVE_POINTS = 120


@dataclass(frozen=True)
class Seen:
    """What a page shows of an item.

    Attributes:
        shown: a picture, a text or a row.
        wave: of a sound, the lowest and the highest value of each of 120 pieces in turn, between -1 and 1.
        trouble: why there is nothing to show, if so.
    """

    shown: Shown
    wave: tuple[float, ...] = ()
    trouble: str = ""

    @property
    def size(self) -> int:
        """Bytes, about."""
        row = sum(len(name) + len(value) for name, value in self.shown.row)
        return 200 + len(self.shown.picture) + 2 * len(self.shown.text) + 2 * row + 8 * len(self.wave)

    def to_json(self) -> dict[str, Any]:
        shown = self.shown
        kind = "wave" if self.wave else "trouble" if self.trouble else shown.kind
        content = {"kind": kind, "picture": shown.picture, "crisp": shown.crisp, "text": shown.text or self.trouble}
        content |= {"row": [list(pair) for pair in shown.row], "wave": list(self.wave)}
        return {key: value for key, value in content.items() if value}


class Album:
    """The samples of a data set as a page shows them.

    Args:
        dataset: as in a :class:`diffin.Problem`.
        show: what the problem says to show of an item.
        room: bytes that are kept, about; what was not looked at for longest goes first.
    """

    def __init__(self, dataset: Any, show: Callable[[Any], Any] | None, room: int = ROOM) -> None:
        self._dataset, self._show, self._room = dataset, show, room
        self._kept: OrderedDict[int, Seen] = OrderedDict()
        self._used = 0
        self._lock = threading.Lock()

    def kept(self, indices: Iterable[int]) -> dict[int, Seen]:
        """Those of ``indices`` that need not be read."""
        found = {}
        with self._lock:
            for index in indices:
                if index in self._kept:
                    self._kept.move_to_end(index)
                    found[index] = self._kept[index]
        return found

    def see(self, indices: Iterable[int]) -> dict[int, Seen]:
        """Samples by index; one that cannot be read or shown says why."""
        wanted = list(dict.fromkeys(indices))
        found = self.kept(wanted)
        missing = [index for index in wanted if index not in found]
        if missing:
            fresh = self._read(missing)
            self._keep(fresh)
            found |= fresh
        return found

    def _read(self, indices: list[int]) -> dict[int, Seen]:
        try:
            items = read_items(self._dataset, indices)
        except Exception as error:  # Whatever the user's data set raises: the page is of use without it.
            return dict.fromkeys(indices, _trouble(error))
        return {index: self._look(items[index]) if index in items else _UNREADABLE for index in indices}

    def _look(self, item: Any) -> Seen:
        try:
            envelope = wave(item if self._show is None else self._show(item))
            return Seen(Shown("none"), envelope) if envelope else Seen(show_item(item, self._show))
        except Exception as error:  # Likewise, of Problem(show=...).
            return _trouble(error)

    def _keep(self, fresh: Mapping[int, Seen]) -> None:
        with self._lock:
            for index, seen in fresh.items():
                if index not in self._kept:
                    self._kept[index] = seen
                    self._used += seen.size
            while self._used > self._room and len(self._kept) > 1:
                self._used -= self._kept.popitem(last=False)[1].size


def _trouble(error: Exception) -> Seen:
    return Seen(Shown("none"), trouble=f"cannot be shown: {type(error).__name__}: {error}"[:300])


_UNREADABLE = Seen(Shown("none"), trouble="cannot be read")


def wave(item: Any) -> tuple[float, ...]:
    """The outline of a sound: of each of some pieces its lowest and its highest value; empty for anything else.

    A sound is a mapping with ``audio``, that itself or a mapping with ``array`` as of Hugging Face, or else floating point
    numbers of shape (T,), (1, T) or (2, T), T at least 4,000.
    """
    if isinstance(item, tuple) and item:
        item = item[0]
    if isinstance(item, Mapping):
        item = item.get("audio")
        item = item.get("array") if isinstance(item, Mapping) else item
    if isinstance(item, Tensor) and item.is_floating_point():
        item = item.detach().cpu().float().numpy()
    if not isinstance(item, np.ndarray) or item.dtype.kind != "f" or item.ndim not in (1, 2):
        return ()
    values = item if item.ndim == 1 else item[0]
    if len(values) < SHORTEST_WAVE or (item.ndim == 2 and len(item) > 2):
        return ()
    pieces = np.array_split(np.nan_to_num(values.astype(np.float64)), WAVE_POINTS)
    ends = np.array([(piece.min(), piece.max()) for piece in pieces])
    return tuple((ends / (np.abs(ends).max() or 1.0)).round(3).ravel().tolist())


def words_of(item: Any, show: Callable[[Any], Any] | None) -> str:
    """The words of an item, to search in: a text, or the texts of a mapping; empty where there are none."""
    value = item if show is None else show(item)
    if show is None and isinstance(value, (tuple, list)) and value:
        value = value[0]
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return " ".join(part for part in value.values() if isinstance(part, str))
    return ""
