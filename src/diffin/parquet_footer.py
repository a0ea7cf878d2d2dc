"""Footers of Parquet files, looked at before pyarrow does.

pyarrow reads most damage as an error, but its view of a column chunk (``metadata.row_group(i).column(j)``) ends the whole
process where the footer contradicts itself: sizes of texts in a column of numbers, histograms of another length than there
are levels, chunks that are encrypted, an unknown compression, another number of chunks than of columns. So the few entries
that matter are read here first. A footer is a struct of Thrift's compact protocol
(https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md), with the fields of
https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import IO, Any, Final

from diffin.files import check_regular

_MAGIC: Final = b"PAR1"
_FIRST_READ: Final = 1 << 16
"""Bytes from the end; most footers are within, so that a remote file is asked once."""
_CODECS: Final = range(8)
"""Of ``CompressionCodec``, those that there are."""
_DEEPEST: Final = 32
"""Structs in structs; a footer has seven."""

# Numbers of fields, by struct.
_ROW_GROUPS, _ENCRYPTION = 4, 8  # FileMetaData
_COLUMNS = 1  # RowGroup
_ENTRIES, _CRYPTO = 3, 8  # ColumnChunk
_CODEC, _SIZES = 4, 16  # ColumnMetaData
_TEXT_BYTES, _HISTOGRAMS = 1, (2, 3)  # SizeStatistics

# What is looked at, and every list: Thrift reads the entries of those it knows as what it expects, whatever a file says they
# are, so that another kind would be read in two ways.
_CHUNK: Final[dict[int, Any]] = {
    _ENTRIES: {
        2: [int], 3: [bytes], _CODEC: int, 8: [{}], 13: [{}], _SIZES: {_TEXT_BYTES: int, 2: [int], 3: [int]}, 17: {2: [int]},
    },
    _CRYPTO: {2: {1: [bytes]}},
}  # fmt: skip
_FILE: Final[dict[int, Any]] = {
    2: [{}],
    _ROW_GROUPS: [{_COLUMNS: [_CHUNK], 4: [{}]}],
    5: [{}],
    7: [{}],
    _ENCRYPTION: {},
}


def open_parquet(source: Path | IO[bytes], **options: Any) -> Any:
    """A ``pyarrow.parquet.ParquetFile`` whose metadata may be asked anything.

    Args:
        source: a path, or a file that can seek, which stays the caller's to close.
        options: of ``ParquetFile``.

    Raises:
        OSError: it cannot be read, or is no regular file.
        pyarrow.ArrowException: it is damaged; in most cases ``pyarrow.ArrowInvalid``, which is a ``ValueError``.
        UnicodeDecodeError: a name in it is no text.
    """
    import pyarrow.parquet as pq

    metadata = parquet_metadata(source)
    return pq.ParquetFile(source, metadata=metadata, **options)


def parquet_metadata(source: Path | IO[bytes]) -> Any:
    """The ``pyarrow.parquet.FileMetaData`` alone; arguments and errors as of :func:`open_parquet`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if isinstance(source, Path):
        check_regular(source)
        with source.open("rb") as file:
            footer = _footer(file)
    else:
        footer = _footer(source)
    metadata = pq.read_metadata(pa.BufferReader(_MAGIC + footer + len(footer).to_bytes(4, "little") + _MAGIC))
    columns = map(metadata.schema.column, range(metadata.num_columns))
    wrong = _contradiction(
        footer,
        tuple(
            (one.physical_type == "BYTE_ARRAY", one.max_repetition_level, one.max_definition_level) for one in columns
        ),
    )
    if wrong:
        raise pa.ArrowInvalid(f"its footer {wrong}")
    return metadata


def _footer(file: IO[bytes]) -> bytes:
    """The Thrift struct at the end of a file."""
    import pyarrow as pa

    size = file.seek(0, 2)
    end = _tail(file, size, min(size, _FIRST_READ))
    length = int.from_bytes(end[-8:-4], "little")
    if size < 12 or end[-4:] != _MAGIC:
        raise pa.ArrowInvalid("it is encrypted" if end[-4:] == b"PARE" else "it does not end as a Parquet file does")
    if length > size - 12:
        raise pa.ArrowInvalid(f"its footer would have {length:,} bytes, and the file has {size:,}")
    if length + 8 > len(end):
        end = _tail(file, size, length + 8)
    return end[len(end) - 8 - length : -8]


def _tail(file: IO[bytes], size: int, count: int) -> bytes:
    file.seek(size - count)
    found = file.read(count)
    if len(found) != count:
        raise OSError(f"{count} bytes were to be read, and {len(found)} were there")
    return found


@lru_cache(maxsize=16)  # a file is opened anew for each row group
def _contradiction(footer: bytes, columns: tuple[tuple[bool, int, int], ...]) -> str | None:
    """What pyarrow would end the process at, if anything.

    Args:
        footer: the struct ``FileMetaData``.
        columns: of each, whether it is of texts or bytes, and its largest repetition and definition level.
    """
    try:
        file = _Compact(footer).struct(_FILE, 0)
    except (IndexError, ValueError) as error:
        return f"is damaged ({error})"
    if _ENCRYPTION in file:
        return "is of encrypted columns"
    for group in file.get(_ROW_GROUPS, ()):
        chunks = group.get(_COLUMNS, ())
        if len(chunks) != len(columns):
            return f"has {len(chunks)} column chunks in a row group of {len(columns)} columns"
        for chunk, (of_bytes, *levels) in zip(chunks, columns, strict=True):
            entries = chunk.get(_ENTRIES, {})
            sizes = entries.get(_SIZES, {})
            if _CRYPTO in chunk:
                return "is of encrypted columns"
            if entries.get(_CODEC, 0) not in _CODECS:
                return f"is of a compression with number {entries[_CODEC]}"
            if _TEXT_BYTES in sizes and not of_bytes:
                return "has sizes of texts for a column of something else"
            for field, level in zip(_HISTOGRAMS, levels, strict=True):
                if len(sizes.get(field, ())) not in (0, level + 1):
                    return f"counts {len(sizes[field])} levels of a column that has {level + 1}"
    return None


class _Compact:
    """Reads Thrift's compact protocol; raises ``IndexError`` at the end of the bytes, and ``ValueError``."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def struct(self, wanted: dict[int, Any], depth: int) -> dict[int, Any]:
        """The fields that are wanted, by number: for each ``int``, or the fields of a struct, or a list of one of these."""
        found: dict[int, Any] = {}
        field = 0
        while (head := self._byte()) & 15:
            field = field + (head >> 4) if head >> 4 else self._number()
            if not -(1 << 15) <= field < 1 << 15:
                raise ValueError(f"a field of number {field}")
            # One that comes twice would be merged.
            if field in found:
                raise ValueError(f"field {field} comes twice")
            if field in wanted:
                found[field] = self._value(head & 15, wanted[field], depth)
            elif head & 15 not in _TRUTHS:
                self._value(head & 15, None, depth)
        return found

    def _value(self, kind: int, expected: Any, depth: int) -> Any:
        of = type(expected) if isinstance(expected, (dict, list)) else expected
        if of is not None and kind not in _KINDS[of]:
            raise ValueError("a field of another type than it has")
        if depth > _DEEPEST:
            raise ValueError(f"more than {_DEEPEST} structs and lists in one another")
        match kind:
            case 1 | 2 | 3:  # bytes, and truths in lists
                return self._byte()
            case 4 | 5 | 6:
                return self._number()
            case 7:
                return self._skip(8)
            case 8:
                return self._skip(self._varint())
            case 9 | 10:
                return self._list(expected[0] if expected else None, depth)
            case 11:
                return self._map(depth)
            case 12:
                return self.struct(expected or {}, depth + 1)
        raise ValueError(f"a value of type {kind}")

    def _list(self, expected: Any, depth: int) -> list[Any]:
        head = self._byte()
        count = head >> 4 if head >> 4 < 15 else self._varint()
        values = (self._value(head & 15, expected, depth + 1) for _ in range(count))
        if expected is not None:
            return list(values)
        for _ in values:
            pass
        return []

    def _map(self, depth: int) -> None:
        count = self._varint()
        kinds = self._byte() if count else 0
        for _ in range(count):
            self._value(kinds >> 4, None, depth + 1)
            self._value(kinds & 15, None, depth + 1)

    def _byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1]

    def _skip(self, count: int) -> None:
        self._at += count
        if self._at > len(self._data):
            raise IndexError("it ends too early")

    def _varint(self) -> int:
        found = byte = self._byte()
        if byte < 128:
            return found
        found &= 127
        for shift in range(7, 70, 7):
            byte = self._byte()
            found |= (byte & 127) << shift
            if byte < 128:
                return found
        raise ValueError("a number without end")

    def _number(self) -> int:
        coded = self._varint()
        return (coded >> 1) ^ -(coded & 1)


_TRUTHS: Final = (1, 2)
"""Of a field they have no bytes: the type is the value."""
_KINDS: Final[dict[Any, tuple[int, ...]]] = {int: (5, 6), bytes: (8,), list: (9,), dict: (12,)}
"""Types of the compact protocol that are taken for what is expected."""
