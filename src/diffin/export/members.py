"""Members of tar archives, as pieces of a file: read in order, checked, and copied without being unpacked."""

from __future__ import annotations

import copy
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from diffin.errors import DatasetError

_BLOCK = tarfile.BLOCKSIZE
_CHUNK = 1 << 20
# As WebDataset splits names: the key is what comes before the first dot of the file name.
_NAME = re.compile(r"^((?:.*/)?[^.]+)\.([^/]*)$")
_OF_NO_SAMPLE = re.compile(r"__[^/]*__($|/)")


@dataclass(frozen=True)
class Member:
    """A file or folder in an archive.

    Attributes:
        info: what its header says.
        key: of the sample it is of; ``None`` if it is of none.
        kind: what comes after the key and a dot, in small letters, e.g. ``"cls"``.
    """

    info: tarfile.TarInfo
    key: str | None
    kind: str

    @property
    def end(self) -> int:
        """Where the next member begins."""
        return self.info.offset_data + -(-self.info.size // _BLOCK) * _BLOCK


def members(path: Path) -> Iterator[Member]:
    """All members in order, in memory one at a time.

    Raises:
        DatasetError: it is no uncompressed archive, or a member is a link or no file, or points out of its folder.
    """
    try:
        with tarfile.open(path, "r:") as archive:
            while (info := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # It keeps all it has seen.
                _check(path, info)
                if archive.pax_headers:
                    raise DatasetError(f"{path} has headers for all its members, which is not known; pack it again")
                found = _NAME.match(info.name) if info.isreg() and not _OF_NO_SAMPLE.match(info.name) else None
                yield Member(info, *((found[1], found[2].lower()) if found else (None, "")))
    except (tarfile.TarError, EOFError) as error:
        raise DatasetError(f"{path} cannot be read as an uncompressed tar archive ({error}); pack it again") from error


def copied(source: IO[bytes], member: Member, target: IO[bytes]) -> None:
    """Append a member to another archive, header and all, byte for byte.

    Raises:
        DatasetError: the archive ends before it should.
    """
    source.seek(member.info.offset)
    left = member.end - member.info.offset
    while left:
        piece = source.read(min(left, _CHUNK))
        if not piece:
            raise DatasetError(f"{source.name} ends within {member.info.name}; pack it again")
        target.write(piece)
        left -= len(piece)


def content(source: IO[bytes], member: Member) -> bytes:
    """The bytes of a file."""
    source.seek(member.info.offset_data)
    return source.read(member.info.size)


def rewritten(member: Member, data: bytes, target: IO[bytes]) -> None:
    """Append a member with other bytes, all else as it was."""
    info = copy.copy(member.info)
    info.size = len(data)
    info.pax_headers = {key: value for key, value in info.pax_headers.items() if key != "size"}
    target.write(info.tobuf(tarfile.PAX_FORMAT))
    target.write(data + bytes(-len(data) % _BLOCK))


def ended(target: IO[bytes]) -> None:
    """End an archive."""
    size = target.tell() + 2 * _BLOCK
    target.write(bytes(2 * _BLOCK + -size % tarfile.RECORDSIZE))


def _check(path: Path, info: tarfile.TarInfo) -> None:
    # Archives know forward slashes only, but whoever unpacks them may know others.
    parts = re.split(r"[/\\]", info.name)
    if (
        not info.name
        or info.name[0] in "/\\"
        or ".." in parts
        or re.match(r"[A-Za-z]:", info.name)
        or "\0" in info.name
    ):
        raise DatasetError(f"{path} holds {info.name!r}, which points out of its folder; do not use this archive")
    if not (info.isreg() or info.isdir()) or info.issparse():
        raise DatasetError(f"{path} holds {info.name!r}, which is neither a plain file nor a folder; pack it without")
