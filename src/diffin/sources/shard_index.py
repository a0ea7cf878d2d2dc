"""Where each member of each sample of tar shards lies, on disk and mapped into memory as it is asked for.

With N samples of M members in all, there is a file for each of these arrays:

    first  Int64, N + 1   of a sample, its first member
    start  Int64, M       of a member, where its bytes begin in its shard
    size   Int64, M       of a member, how many they are
    kind   Int32, M       of a member, the number of its kind
    ends   Int64, N + 1   of a sample, where its key ends in ``keys``, after a 0
    keys   UInt8          the keys, one after the other, in UTF-8

and ``meta.json`` for what is of a shard. A folder appears when it is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from array import array
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from diffin import checked
from diffin.errors import DatasetError, UnreadableError
from diffin.files import PART_SUFFIX, read_json, write_json
from diffin.progress import phase
from diffin.sources.base import Indices
from diffin.sources.locations import Stamp, opened, stamp
from diffin.sources.many_files import of_each, processes_for
from diffin.sources.tar import key_of, runs, shown_key
from diffin.sources.unreadable import reason_of

_FORMAT = 1
_META = "meta.json"
_WORTH_PROCESSES = 1 << 28
_ARRAYS = {"first": np.int64, "start": np.int64, "size": np.int64, "kind": np.int32, "ends": np.int64, "keys": np.uint8}


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """The samples of some shards.

    Attributes:
        folder: where it lies.
        shards: the names of those that can be read.
        stamps: what each of them was.
        counts: how many samples each holds.
        quarantined: why each of the others cannot be read.
        kinds: of members.
        arrays: see above.
    """

    folder: Path
    shards: tuple[str, ...]
    stamps: tuple[Stamp, ...]
    counts: tuple[int, ...]
    quarantined: Mapping[str, str]
    kinds: tuple[str, ...]
    arrays: Mapping[str, npt.NDArray[Any]]

    def __len__(self) -> int:
        return int(self._ends[-1]) if self.counts else 0

    @property
    def fingerprint(self) -> str:
        """Tells which sample is at which position. The times of the shards may differ, as of copies on several machines."""
        told = json.dumps([self.shards, [was.size for was in self.stamps], self.counts])
        return hashlib.sha256(told.encode()).hexdigest()[:24]

    def shard_of(self, positions: Indices) -> Indices:
        """The number of the shard of each position."""
        found: Indices = np.searchsorted(self._ends, positions, side="right")
        return found

    @cached_property
    def _ends(self) -> Indices:
        return np.cumsum(self.counts, dtype=np.int64)

    def key(self, position: int) -> str:
        ends, keys = self.arrays["ends"], self.arrays["keys"]
        return shown_key(bytes(keys[ends[position] : ends[position + 1]]))

    def members(self, position: int) -> list[tuple[str, int, int]]:
        """Kind, first byte and size of each member of a sample."""
        first, last = self.arrays["first"][position : position + 2].tolist()
        of_members = (self.arrays[name][first:last].tolist() for name in ("kind", "start", "size"))
        found = list(zip(*of_members, strict=True))
        if not 0 <= first <= last <= len(self.arrays["start"]) or any(
            not 0 <= kind < len(self.kinds) or min(start, size) < 0 for kind, start, size in found
        ):
            raise DatasetError(f"the index of the shards in {self.folder} is damaged; delete it")
        return [(self.kinds[kind], start, size) for kind, start, size in found]


def indexed(shards: Sequence[str], folder: Path | None, key: str | None, *, show: bool) -> ShardIndex:
    """The index of some shards, made if there is none that fits.

    Args:
        shards: names.
        folder: where it lies or shall lie; ``None`` for one in the user's cache.
        key: the field of the ``json`` member that is the key of a sample; ``None`` for its name in the archive.
        show: a bar with the time left while it is made.

    Raises:
        DatasetError: it cannot be written, or no shard can be read.
    """
    stamps = list(of_each(_stamp, shards))
    told = json.dumps([_FORMAT, key, [[name, found] for name, found in zip(shards, stamps, strict=True)]])
    identity = hashlib.sha256(told.encode()).hexdigest()[:24]
    chosen = _cache() / identity if folder is None else folder
    there = load(chosen, identity)
    # Names are those that were asked for, and never those that a file brings along.
    if there is not None and set(there.shards) <= set(shards):
        return there
    if chosen.exists() and any(chosen.iterdir()) and not (chosen / _META).exists():
        raise DatasetError(f"index={str(chosen)!r} holds other things than an index; pass a folder of its own")
    try:
        chosen.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=chosen.name + ".", suffix=PART_SUFFIX, dir=chosen.parent))
        try:
            _make(made, identity, shards, stamps, key, show)
            _put(made, chosen)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    except OSError as error:
        raise DatasetError(
            f"the index of the shards cannot be written to {chosen} ({error}); pass another folder as index="
        ) from error
    found = load(chosen, identity, unsettled=True)
    if found is None:
        raise DatasetError(f"another process wrote something else to {chosen}; pass a folder of its own as index=")
    return found


def load(folder: Path, identity: str | None = None, *, unsettled: bool = False) -> ShardIndex | None:
    """The index in a folder; ``None`` if there is none, or it is of other shards, or damaged.

    Args:
        folder: where it lies.
        identity: of the shards; ``None`` for any.
        unsettled: take also one that leaves out shards which might be read another time.
    """
    try:
        meta = read_json(folder / _META)
        if meta.get("format") != _FORMAT or identity not in (None, checked.text(meta, "identity")):
            return None
        if not (checked.flag(meta, "settled") or unsettled):
            return None
        lengths = checked.mapping(meta, "lengths")
        arrays = {name: _mapped(folder / name, kind, checked.whole(lengths, name)) for name, kind in _ARRAYS.items()}
        shards = checked.each(meta, "shards", checked.mapping)
        counts = tuple(checked.whole(shard, "samples") for shard in shards)
        of_members = {lengths[name] for name in ("start", "size", "kind")}
        if {lengths["first"], lengths["ends"]} != {sum(counts) + 1} or len(of_members) > 1:
            raise ValueError("its arrays are of other samples or members")
        return ShardIndex(
            folder,
            tuple(checked.text(shard, "name") for shard in shards),
            tuple(_stamp_of(shard) for shard in shards),
            counts,
            checked.values(meta, "quarantined", checked.text),
            checked.each(meta, "kinds", checked.text),
            arrays,
        )
    except (OSError, ValueError):
        return None


def _stamp_of(shard: Mapping[str, Any]) -> Stamp:
    found = checked.listed(shard, "stamp")
    if len(found) != 2 or not isinstance(found[1], int | str):
        raise ValueError("'stamp' is none")
    return Stamp(checked.whole({"size": found[0]}, "size"), found[1])


@dataclass
class _Shard:
    """What was found in a shard."""

    first: array[int]
    start: array[int]
    size: array[int]
    kind: array[int]
    ends: array[int]
    keys: bytearray
    kinds: dict[str, int]


@dataclass(frozen=True)
class _Broken:
    reason: str
    settled: bool


def _scanned(name: str, key: str | None) -> _Shard | _Broken:
    found = _Shard(array("q"), array("q"), array("q"), array("i"), array("q"), bytearray(), {})
    try:
        with opened(name) as file:
            for own, members in runs(file, name):
                if own is None:
                    continue
                found.first.append(len(found.start))
                for member in members:
                    found.start.append(member.start)
                    found.size.append(member.size)
                    found.kind.append(found.kinds.setdefault(member.kind, len(found.kinds)))
                found.keys += key_of(file, own, members, key)
                found.ends.append(len(found.keys))
    except UnreadableError as error:
        # A file that is not there is known by that; anything else may be over at another time.
        return _Broken(reason_of(error), isinstance(error.__cause__, FileNotFoundError))
    except DatasetError as error:
        return _Broken(str(error), True)
    return found


def _make(
    folder: Path, identity: str, shards: Sequence[str], stamps: Sequence[Stamp | None], key: str | None, show: bool
) -> None:
    kinds: dict[str, int] = {}
    quarantined: dict[str, str] = {}
    good: list[dict[str, Any]] = []
    settled, lengths = True, dict.fromkeys(_ARRAYS, 0)
    with ExitStack() as stack:
        files = {name: stack.enter_context((folder / name).open("wb")) for name in _ARRAYS}

        def write(name: str, values: npt.NDArray[Any]) -> None:
            files[name].write(values.astype(_ARRAYS[name], copy=False).tobytes())
            lengths[name] += len(values)

        bar = stack.enter_context(phase("indexing shards", len(shards), show=show))
        write("ends", np.zeros(1, np.int64))
        # Starting processes takes as long as reading a few thousand headers.
        processes = processes_for(shards) if sum(was.size for was in stamps if was) > _WORTH_PROCESSES else 1
        scanned = of_each(partial(_scanned, key=key), shards, processes=processes)
        for name, was, found in zip(shards, stamps, scanned, strict=True):
            bar.advance()
            if was is None and isinstance(found, _Shard):
                found = _Broken(f"{name} came to be while the others were read", False)
            if isinstance(found, _Broken):
                quarantined[name] = found.reason
                settled &= found.settled
                continue
            numbers = np.array([kinds.setdefault(kind, len(kinds)) for kind in found.kinds], np.int32)
            write("first", np.array(found.first, np.int64) + lengths["start"])
            write("start", np.array(found.start, np.int64))
            write("size", np.array(found.size, np.int64))
            write("kind", numbers[np.array(found.kind, np.int32)] if len(numbers) else numbers)
            write("ends", np.array(found.ends, np.int64) + lengths["keys"])
            write("keys", np.frombuffer(bytes(found.keys), np.uint8))
            good.append({"name": name, "stamp": was, "samples": len(found.first)})
        write("first", np.array([lengths["start"]], np.int64))
    write_json(
        folder / _META,
        {
            "format": _FORMAT, "identity": identity, "settled": settled, "shards": good, "quarantined": quarantined,
            "kinds": list(kinds), "lengths": lengths,
        },
    )  # fmt: skip


def _put(made: Path, folder: Path) -> None:
    """Give a finished index its place. One that says the same stays, others are replaced."""
    for last in (False, False, True):
        try:
            made.rename(folder)
        except OSError:
            there, ours = load(folder, unsettled=True), load(made, unsettled=True)
            if there and ours and _same(there, ours):
                return  # Of another process that was faster, and may have it open.
            if last or not (folder / _META).exists():
                raise
            old = made.with_name(made.name + ".old")
            with suppress(FileNotFoundError):
                folder.rename(old)
            shutil.rmtree(old, ignore_errors=True)
        else:
            return


def _same(one: ShardIndex, other: ShardIndex) -> bool:
    return (one.shards, one.stamps, one.counts, one.quarantined) == (
        other.shards, other.stamps, other.counts, other.quarantined,
    )  # fmt: skip


def _stamp(name: str) -> Stamp | None:
    try:
        return stamp(name)
    except UnreadableError:
        return None


def _mapped(path: Path, kind: Any, length: int) -> npt.NDArray[Any]:
    if path.stat().st_size != length * np.dtype(kind).itemsize:
        raise ValueError(f"{path} is damaged")
    if not length:
        return np.empty(0, kind)
    return np.memmap(path, kind, mode="r", shape=(length,))


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "diffin" / "shards"
