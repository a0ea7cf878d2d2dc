"""Members of tar archives, as pieces of a file: copied without being unpacked."""

from __future__ import annotations

import tarfile
from typing import IO

from diffin.errors import DatasetError
from diffin.sources.tar import BLOCK, Member, info_of

_CHUNK = 1 << 20


def copied(source: IO[bytes], member: Member, target: IO[bytes]) -> None:
    """Append a member to another archive, header and all, byte for byte.

    Raises:
        DatasetError: the archive ends before it should.
    """
    source.seek(member.offset)
    left = member.end - member.offset
    while left:
        piece = source.read(min(left, _CHUNK))
        if not piece:
            raise DatasetError(f"{source.name} ends within {member.name}; pack it again")
        target.write(piece)
        left -= len(piece)


def content(source: IO[bytes], member: Member) -> bytes:
    """The bytes of a file."""
    source.seek(member.start)
    return source.read(member.size)


def rewritten(source: IO[bytes], member: Member, data: bytes, target: IO[bytes]) -> None:
    """Append a member with other bytes, all else as it was."""
    info = info_of(source, member)
    info.size = len(data)
    info.pax_headers = {key: value for key, value in info.pax_headers.items() if key != "size"}
    target.write(info.tobuf(tarfile.PAX_FORMAT))
    target.write(data + bytes(-len(data) % BLOCK))


def ended(target: IO[bytes]) -> None:
    """End an archive."""
    size = target.tell() + 2 * BLOCK
    target.write(bytes(2 * BLOCK + -size % tarfile.RECORDSIZE))
