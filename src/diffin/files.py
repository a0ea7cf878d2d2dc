"""Files that are either whole or absent: written beside their place, synced, then renamed into it."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

PART_SUFFIX = ".part"

_MOST_JSON = 1 << 28
_DEEPEST = 100


@contextmanager
def write_atomically(path: Path, *, unique: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it takes the place of ``path``, on error it is removed.

    A reader sees the old file or the new one, whenever the writer is killed.

    Args:
        path: of the file.
        unique: have a temporary path that no other process has, on any machine, so that several may write the file at once.
    """
    part = path.with_name(f"{path.name}{'.' + uuid4().hex if unique else ''}{PART_SUFFIX}")
    if part.is_symlink() or (part.exists() and not part.is_file()):
        # Not left by a writer: what is written must not go where a link leads, nor wait at a pipe.
        part.unlink()
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
        sync_folder(path.parent)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def sync_folder(path: Path) -> None:
    """Make renames inside the folder durable, where the platform can."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # Windows cannot open a folder; its renames are durable without.
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    with write_atomically(path) as part:
        part.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def check_regular(path: Path) -> None:
    """Refuse what is no plain file (or a link to one): reading a pipe may wait, and reading a device never end.

    Raises:
        FileNotFoundError: nothing is there.
        OSError: it is something else.
    """
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(f"{path} is no plain file")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be read, or is no plain file.
        ValueError: it is not JSON, or not an object, or larger or deeper nested than anything that is written here.
    """
    check_regular(path)
    if path.stat().st_size > _MOST_JSON:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes; at most {_MOST_JSON:,} are read")
    value = parse_json(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a JSON {type(value).__name__}, not an object")
    return value


def parse_json(text: str | bytes) -> Any:
    """Read JSON.

    Raises:
        ValueError: it is none, or nested so deep that what walks through it would fail.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    level, depth = [value], 0
    while level:
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer if isinstance(outer, list) else ())
            if isinstance(inner, dict | list)
        ]
        depth += 1
        if depth > _DEEPEST:
            raise ValueError(f"it is nested deeper than {_DEEPEST} levels")
    return value
