"""Files by name: local paths and URLs that fsspec knows, written out one by one or with braces and asterisks."""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from diffin.errors import DatasetError, UnreadableError
from diffin.files import check_regular
from diffin.sources.unreadable import reason_of

_REMOTE = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+://")
_BRACES = re.compile(r"\{([^{}]*)\}")


class Stamp(NamedTuple):
    """What tells a file from what it was.

    Attributes:
        size: in bytes.
        changed: the time of the last change in nanoseconds or, of a URL, a digest of what its file system says of it.
    """

    size: int
    changed: int | str


def is_remote(name: str) -> bool:
    return bool(_REMOTE.match(name))


def expanded(files: str | Path | Sequence[str | Path], suffix: str) -> list[str]:
    """Names of files, absolute where they are local.

    Args:
        files: a list of paths and URLs, taken as they are; or one, with braces (``{000..099}``, ``{a,b}``), asterisks, or
            the name of a local folder.
        suffix: how the files of a folder end that are meant.

    Raises:
        DatasetError: there are none, or one comes twice.
    """
    if isinstance(files, str | Path):
        found = [name for text in _braces(str(files)) for name in _matching(text, suffix)]
    else:
        found = [_absolute(os.fspath(name)) for name in files]
    if not found:
        raise DatasetError(f"{str(files)!r} names no files; pass paths or URLs of {suffix} files, or a pattern of them")
    if len(set(found)) < len(found):
        twice = next(name for number, name in enumerate(found) if name in found[:number])
        raise DatasetError(f"{twice} comes twice; pass each file once")
    return found


def stamp(name: str) -> Stamp:
    """
    Raises:
        UnreadableError: there is no such file, or it cannot be asked about.
    """
    with _unreadable(name):
        if not is_remote(name):
            status = os.stat(name)  # noqa: PTH116
            return Stamp(status.st_size, status.st_mtime_ns)
        system, path = _remote(name)
        told = system.info(path)
        digest = hashlib.sha256(repr(sorted(told.items(), key=lambda item: str(item[0]))).encode())
        return Stamp(int(told["size"] or 0), digest.hexdigest()[:16])


@contextmanager
def opened(name: str) -> Iterator[IO[bytes]]:
    """A file to read, with ``seek``.

    Raises:
        UnreadableError: it cannot be opened, or reading it fails.
    """
    with _unreadable(name):
        if not is_remote(name):
            check_regular(Path(name))
            with Path(name).open("rb") as file:
                yield file
            return
        system, path = _remote(name)
        with system.open(path, "rb") as file:
            yield file


def read_ranges(name: str, ranges: Sequence[tuple[int, int]], expected: Stamp) -> list[bytes]:
    """The bytes of a file from each first to each last position, exclusive. Nothing stays open.

    Args:
        name: of the file.
        ranges: ascending.
        expected: what the file was when the positions were found.

    Raises:
        UnreadableError: it cannot be read, is shorter, or has changed.
    """
    with _unreadable(name):
        if is_remote(name):
            system, path = _remote(name)
            count = len(ranges)
            starts, stops = [start for start, _ in ranges], [stop for _, stop in ranges]
            pieces: list[bytes] = system.cat_ranges([path] * count, starts, stops, on_error="raise")
        else:
            check_regular(Path(name))
            with Path(name).open("rb", buffering=0) as file:
                status = os.fstat(file.fileno())
                if Stamp(status.st_size, status.st_mtime_ns) != expected:
                    raise UnreadableError(f"{name} has changed since its index was made; open the data set anew")
                # Before memory is taken for it.
                if any(not 0 <= start <= stop <= status.st_size for start, stop in ranges):
                    raise UnreadableError(f"{name} ends before it should")
                pieces = [_read(file, start, stop) for start, stop in ranges]
    if any(len(piece) < stop - start for piece, (start, stop) in zip(pieces, ranges, strict=True)):
        raise UnreadableError(f"{name} ends before it should")
    return pieces


def _read(file: IO[bytes], start: int, stop: int) -> bytes:
    file.seek(start)
    pieces = []
    while start < stop and (piece := file.read(stop - start)):
        pieces.append(piece)
        start += len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


@contextmanager
def _unreadable(name: str) -> Iterator[None]:
    """Errors of a file system as one that says which file. Those of remote ones have no common base."""
    try:
        yield
    except (UnreadableError, DatasetError, ImportError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise UnreadableError(f"there is no {name}") from error
    except Exception as error:
        if not (is_remote(name) or isinstance(error, OSError)):
            raise
        raise UnreadableError(f"{name} cannot be read ({reason_of(error)})") from error


def _remote(name: str) -> tuple[Any, str]:
    # Asked for anew each time: fsspec keeps file systems itself, and knows that a process that was forked needs its own.
    import fsspec  # type: ignore[import-untyped]

    system, path = fsspec.core.url_to_fs(name)
    return system, path


def _absolute(name: str) -> str:
    if name.startswith("file://"):
        import fsspec

        return str(fsspec.core.strip_protocol(name))
    return name if is_remote(name) else os.path.abspath(name)  # noqa: PTH100


def _braces(text: str) -> list[str]:
    found = _BRACES.search(text)
    if found is None:
        return [text]
    inner = found[1]
    if numbers := re.fullmatch(r"(\d+)\.\.(\d+)", inner):
        first, last = numbers[1], numbers[2]
        width = max(len(first), len(last)) if any(len(n) > 1 and n[0] == "0" for n in (first, last)) else 0
        options = [f"{number:0{width}}" for number in range(int(first), int(last) + 1)]
    elif "," in inner:
        options = inner.split(",")
    else:
        raise DatasetError(f"{text!r}: the braces hold no range and no list; pass e.g. {{000..099}} or {{a,b}}")
    tails = _braces(text[found.end() :])
    return [text[: found.start()] + option + tail for option in options for tail in tails]


def _matching(text: str, suffix: str) -> list[str]:
    name = _absolute(text)
    if is_remote(name):
        if "*" not in name:
            return [name]
        with _unreadable(name):
            system, path = _remote(name)
            return [str(system.unstrip_protocol(found)) for found in sorted(system.glob(path))]
    if Path(name).is_dir():
        return [str(path) for path in sorted(Path(name).iterdir()) if path.suffix == suffix and path.is_file()]
    if Path(name).exists() or not glob.has_magic(name):
        return [name]
    return sorted(glob.glob(name, recursive=True))  # noqa: PTH207
