"""Shards of WebDataset as a map-style data set."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from diffin.errors import DatasetError, UnreadableError
from diffin.sources.base import Indices
from diffin.sources.locations import Stamp, expanded, read_ranges
from diffin.sources.shard_index import ShardIndex, indexed, load
from diffin.sources.stored import Stored
from diffin.sources.unreadable import Unreadable

_log = logging.getLogger(__name__)

_LARGEST_GAP = 1 << 16
_LARGEST_SPAN = 1 << 25

Decode = Callable[[dict[str, bytes]], Any]
Wanted = tuple[int, int, int, str]
"""Of a member: where it begins, its size, the place of its sample among those that are asked for, its kind."""


class WebDataset(Stored):
    """Samples of tar shards, any of them without reading those before it.

    On first use, the headers of all shards are read once, into an index that is kept: in the user's cache, by the names,
    sizes and times of the shards, or in a folder of choice. A sample is a run of files with the same name up to the first
    dot, as in the library of that name, in the order of the shards; what comes after the dot is the kind of a member.

    A shard that cannot be opened, or is no sound archive, is left out of the samples, and listed in :attr:`quarantined`. If
    one breaks later, its samples are unreadable, and so is every sample that ``decode`` fails on.

    Args:
        shards: a list of paths or of URLs that fsspec knows; or one string: a path, a folder, a pattern with asterisks, or
            with braces as in ``"shards/{000..099}.tar"``. Uncompressed.
        decode: makes an item of the members of a sample: their bytes by kind, e.g. ``"png"``, ``"txt"``; such as
            :class:`diffin.sources.Pair`. Workers that do not fork need one that can be pickled.
        index: a folder for the index; ``None`` for one in the cache (``$XDG_CACHE_HOME/diffin/shards``).
        members: the kinds to read, for shards that hold more than is decoded; ``None`` for all.
        key: the field of the ``json`` member that tells samples apart, e.g. ``"uid"``; ``None`` for their name in the shard.
        progress: show a bar with the time left while the index is made.

    Raises:
        DatasetError: no shard is named, or one twice.
    """

    def __init__(
        self,
        shards: str | Path | Sequence[str | Path],
        decode: Decode,
        *,
        index: str | Path | None = None,
        members: Iterable[str] | None = None,
        key: str | None = None,
        progress: bool = True,
    ) -> None:
        self._names = expanded(shards, ".tar")
        self.decode = decode
        self._folder = None if index is None else Path(index).absolute()
        self._members = None if members is None else frozenset(kind.lower() for kind in members)
        self.key, self._progress = key, progress
        self._opened: ShardIndex | None = None

    @property
    def shards(self) -> tuple[str, ...]:
        """The names of the shards that can be read, in order."""
        return self._index.shards

    @property
    def quarantined(self) -> Mapping[str, str]:
        """Why each shard that is left out cannot be read, by its name."""
        return MappingProxyType(dict(self._index.quarantined))

    def __len__(self) -> int:
        return len(self._index)

    def keys(self, positions: Sequence[int] | Indices) -> list[str]:
        index = self._index
        return [index.key(position) for position in self._in_range(positions)]

    def read(self, positions: Sequence[int]) -> list[Any]:
        index = self._index
        found: list[Any] = [{} for _ in positions]
        numbers = index.shard_of(np.asarray(positions, dtype=np.int64)).tolist()
        wanted: dict[int, list[Wanted]] = {}
        for place, (position, number) in enumerate(zip(positions, numbers, strict=True)):
            of_shard = wanted.setdefault(number, [])
            for kind, start, size in index.members(position):
                if self._members is None or kind in self._members:
                    of_shard.append((start, size, place, kind))
        for number in sorted(wanted):
            self._read_of(index.shards[number], index.stamps[number], sorted(wanted[number]), found)
        return found

    def decoded(self, stored: dict[str, bytes]) -> Any:
        return self.decode(stored)

    def _read_of(self, name: str, was: Stamp, wanted: list[Wanted], found: list[Any]) -> None:
        """Put the members that are wanted of a shard, ascending, where they belong."""
        spans = _spans(wanted)
        try:
            pieces = read_ranges(name, [(start, stop) for start, stop, _ in spans], was)
        except UnreadableError as error:
            for _, _, place, _ in wanted:
                found[place] = Unreadable(error.reason)
            return
        for (begin, _, members), piece in zip(spans, pieces, strict=True):
            for start, size, place, kind in members:
                found[place][kind] = piece[start - begin : start - begin + size]

    @property
    def _index(self) -> ShardIndex:
        if self._opened is None:
            self._opened = indexed(self._names, self._folder, self.key, show=self._progress)
            left_out = self._opened.quarantined
            if left_out:
                first = next(iter(left_out))
                _log.warning(
                    "%d of %d shards cannot be read and are left out; the first: %s", len(left_out), len(self._names),
                    left_out[first],
                )  # fmt: skip
            if not self._opened.shards:
                raise DatasetError(f"none of the {len(self._names)} shards can be read; the first: {left_out[first]}")
        return self._opened

    def __getstate__(self) -> dict[str, Any]:
        index = self._index
        return {**self.__dict__, "_opened": None, "_pickled": (index.folder, index.fingerprint)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        folder, fingerprint = state.pop("_pickled")
        self.__dict__.update(state)
        # Where the folder is not to be seen, the index is made again; the positions must then be of the same samples.
        there = load(folder, unsettled=True)
        self._opened = there if there is not None and there.fingerprint == fingerprint else None
        if self._index.fingerprint != fingerprint:
            raise DatasetError(
                "the shards are not what they were in the process that sent them, so the samples have other positions; see "
                "that all processes can read the same shards, and start again"
            )


def _spans(wanted: list[Wanted]) -> list[tuple[int, int, list[Wanted]]]:
    """First and last byte of what is read at once, and the members in it: those with little between them together."""
    spans: list[tuple[int, int, list[Wanted]]] = []
    for member in wanted:
        start, stop = member[0], member[0] + member[1]
        if spans:
            first, last, members = spans[-1]
            if start - last <= _LARGEST_GAP and stop - first <= _LARGEST_SPAN:
                members.append(member)
                spans[-1] = (first, max(last, stop), members)
                continue
        spans.append((start, stop, [member]))
    return spans
