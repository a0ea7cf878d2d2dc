"""The headers of tar archives: members and samples, read in order without reading what is in them.

A plain header, and the extended ones that most libraries write before it, are read here, at a tenth of the time that
:mod:`tarfile` takes; whatever is out of the ordinary is left to that module.
"""

from __future__ import annotations

import logging
import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from typing import IO, NamedTuple

from diffin.errors import DatasetError
from diffin.files import parse_json

_log = logging.getLogger(__name__)

BLOCK = tarfile.BLOCKSIZE
_OF_NO_SAMPLE = re.compile(r"__[^/]*__($|/)")
_MAY_POINT_OUT = re.compile(r"^[/\\]|\.\.|^[A-Za-z]:|\0")
_OCTAL = re.compile(rb" *([0-7]+)[ \0]*")
# Of a size or of anything else that changes what follows, tarfile knows more.
_RECORD = re.compile(rb"(\d{1,9}) (mtime|atime|ctime|path)=([^\n]*)\n")
_LONGEST_EXTENDED = 1 << 16
_MOST_EXTENDED = 1 << 20
_MOST_HEADERS = 10
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd", b"\x04\x22": "lz4"}


class Member(NamedTuple):
    """A file or folder in an archive.

    Attributes:
        name: its path in the archive.
        offset: where its headers begin.
        start: where its bytes begin.
        size: how many they are.
        key: of the sample it is of; ``None`` if it is of none.
        kind: what comes after the key and a dot, in small letters, e.g. ``"cls"``.
    """

    name: str
    offset: int
    start: int
    size: int
    key: str | None
    kind: str

    @property
    def end(self) -> int:
        """Where the next member begins."""
        return self.start + padded(self.size)


class _Found(NamedTuple):
    name: str
    start: int
    size: int
    is_file: bool


def padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def runs(file: IO[bytes], where: str) -> Iterator[tuple[str | None, list[Member]]]:
    """The samples of a shard in order: key and members. What is of no sample comes by itself, with the key ``None``.

    Args:
        file: open for reading, with ``seek``.
        where: what to call it in a sentence.

    Raises:
        DatasetError: it cannot be read, or a sample has two members of a kind.
    """
    key: str | None = None
    found: list[Member] = []
    kinds: set[str] = set()
    for member in members(file, where):
        if member.key is None:
            # It does not part a sample from its rest, so it comes before the sample that it stands in.
            yield None, [member]
            continue
        if member.key != key:
            if key is not None:
                yield key, found
            key, found, kinds = member.key, [], set()
        if member.kind in kinds:
            raise DatasetError(f"{where} holds {member.name!r} twice in one sample; pack it again")
        found.append(member)
        kinds.add(member.kind)
    if key is not None:
        yield key, found


def key_of(file: IO[bytes], name: str, found: Sequence[Member], field: str | None) -> bytes:
    """What a sample is called: what a field of its ``json`` member holds, if there is one; else its name in the archive."""
    for member in found if field is not None else ():
        if member.kind == "json":
            file.seek(member.start)
            try:
                told = parse_json(file.read(member.size))[field]
                if told is not None:
                    return str(told).encode("utf-8", "replace")
            except (ValueError, KeyError, TypeError):
                break
    return name.encode("utf-8", "surrogateescape")


def shown_key(key: bytes) -> str:
    """The same as a text that any table holds."""
    return key.decode("utf-8", "backslashreplace")


def members(file: IO[bytes], where: str) -> Iterator[Member]:
    """All members in order, in memory one at a time.

    Raises:
        DatasetError: it is no uncompressed archive, is damaged, or a member is a link or no file, or points out of its
            folder.
    """
    length, offset = file.seek(0, 2), 0
    while (found := _at(file, offset, where)) is not None:
        if found.start + padded(found.size) > length:
            raise DatasetError(f"{where} ends within {found.name!r}; pack it again")
        _check(where, found)
        split = parted(found.name) if found.is_file and not _OF_NO_SAMPLE.match(found.name) else None
        key, kind = (split[0], split[1].lower()) if split else (None, "")
        yield Member(found.name, offset, found.start, found.size, key, kind)
        offset = found.start + padded(found.size)


def parted(name: str) -> tuple[str, str] | None:
    r"""Key and kind, as WebDataset splits names: at the first dot of the file name. ``None`` for what is of no sample.

    The same as ``(?s)^((?:.*/)?[^.]+)\.([^/]*)$``, in a time that grows with the length of the name and not with its square.
    """
    slash = name.rfind("/")
    dot = name.find(".", slash + 1)
    if dot < 0:
        return None
    if dot == slash + 1:
        # A file name that begins with a dot: its folder is the key, unless that has a dot of its own.
        folder = name.rfind("/", 0, max(slash, 0)) + 1
        if slash < 0 or "." in name[folder:slash]:
            return None
    return name[:dot], name[dot + 1 :]


def info_of(file: IO[bytes], member: Member) -> tarfile.TarInfo:
    """Everything that the headers of a member say."""
    info = _by_tarfile(file, member.offset)
    assert info is not None  # it was read before
    return info


def _at(file: IO[bytes], offset: int, where: str) -> _Found | None:
    """The member of which the headers begin at ``offset``; ``None`` at the end of the archive."""
    file.seek(offset)
    header = file.read(BLOCK)
    if not header and offset:
        _log.warning("%s has no mark of its end; was it cut off there?", where)
        return None
    if len(header) == BLOCK and not header.strip(b"\0"):
        return None
    found = _plain(file, header, offset)
    if found is not None:
        return found
    info = _by_tarfile(file, offset) if len(header) == BLOCK and _is_usual(file, offset) else None
    if info is None or info.size < 0 or info.offset_data <= offset:
        raise DatasetError(_why_not(header, offset, where))
    if not (info.isreg() or info.isdir()) or info.issparse():
        raise DatasetError(f"{where} holds {info.name!r}, which is neither a plain file nor a folder; pack it without")
    return _Found(info.name, info.offset_data, info.size, info.isreg())


def _is_usual(file: IO[bytes], offset: int) -> bool:
    """Whether few and small headers come before that of the member: tarfile takes memory for what any of them claims."""
    for _ in range(_MOST_HEADERS):
        file.seek(offset)
        header = file.read(BLOCK)
        if header[156:157] not in (b"x", b"g", b"X", b"L", b"K"):
            return True
        size = _number(header[124:136])
        if size is None or size > _MOST_EXTENDED:
            return False
        offset += BLOCK + padded(size)
    return False


def _plain(file: IO[bytes], header: bytes, offset: int) -> _Found | None:
    """A file with a header of the usual form, alone or after an extended one with its name or times; ``None`` for others."""
    path, start = None, offset + BLOCK
    if header[156:157] == b"x":
        size = _number(header[124:136])
        if size is None or size > _LONGEST_EXTENDED or not _sums_up(header):
            return None
        extended = file.read(padded(size) + BLOCK)
        records = _records(extended[:size])
        if records is None or len(extended) < padded(size) + BLOCK:
            return None
        header, start, path = extended[-BLOCK:], start + len(extended), records.get(b"path")
    size = _number(header[124:136])
    # In the old format a folder is a file with a name that ends in a slash.
    if header[156:157] != b"0" or size is None or header[257:262] != b"ustar" or not _sums_up(header):
        return None
    name = header[:100].partition(b"\0")[0]
    if header[345]:
        if header[262:263] != b"\0":
            return None  # another format has other things there
        name = header[345:500].partition(b"\0")[0] + b"/" + name
    return _Found((path or name).decode("utf-8", "surrogateescape"), start, size, True)


def _number(field: bytes) -> int | None:
    found = _OCTAL.fullmatch(field)
    return int(found[1], 8) if found else None


def _sums_up(header: bytes) -> bool:
    """Whether the sum of the bytes, their own field as blanks, is what the header says: modulo 65521, as Adler-32 sums."""
    told = _number(header[148:156])
    if told is None:
        return False
    found = zlib.adler32(header[156:], zlib.adler32(b" " * 8, zlib.adler32(header[:148])))
    return found & 0xFFFF == (told + 1) % 65521


def _records(data: bytes) -> dict[bytes, bytes] | None:
    """The records of an extended header; ``None`` if there are any that are not known here."""
    records, at = {}, 0
    while at < len(data):
        found = _RECORD.match(data, at)
        if found is None or int(found[1]) != found.end() - at:
            return None
        records[found[2]] = found[3]
        at = found.end()
    return records


def _by_tarfile(file: IO[bytes], offset: int) -> tarfile.TarInfo | None:
    file.seek(offset)
    try:
        archive = tarfile.TarFile(fileobj=file)
        info = archive.firstmember  # type: ignore[attr-defined]
    except (tarfile.TarError, EOFError, ValueError, LookupError, OverflowError, RecursionError, TypeError):
        return None
    if info is not None and archive.pax_headers:
        raise DatasetError(
            f"{info.name!r} comes after headers for all members of its archive, which is not known; pack it again"
        )
    found: tarfile.TarInfo | None = info
    return found


def _why_not(header: bytes, offset: int, where: str) -> str:
    if offset:
        return f"{where} is damaged or cut off at byte {offset:,}; pack it again"
    by = next((name for magic, name in _COMPRESSED.items() if header.startswith(magic)), None)
    if by is not None:
        return f"{where} is compressed with {by}, which has no random access; unpack it, or pack it again without"
    told = "is empty" if not header else "is no uncompressed tar archive"
    return f"{where} {told}; pack it again"


def _check(where: str, found: _Found) -> None:
    if found.name and not _MAY_POINT_OUT.search(found.name):
        return
    # Archives know forward slashes only, but whoever unpacks them may know others.
    parts = re.split(r"[/\\]", found.name)
    if not found.name or found.name[0] in "/\\" or ".." in parts or re.match(r"[A-Za-z]:|.*\0", found.name, re.DOTALL):
        raise DatasetError(f"{where} holds {found.name!r}, which points out of its folder; do not use this archive")
