"""Footers of Parquet files at which pyarrow would end the process: these tests would not fail, but never end."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffin.parquet_footer import _contradiction, open_parquet, parquet_metadata

TABLE = pa.table(
    {
        "text": ["x", "yy", None],
        "number": [1, 2, 3],
        "list": [[1.5], [], [2.0, 3.0]],
        "struct": [{"k": 1, "l": "m"}] * 3,
        "fixed": pa.array([b"1234"] * 3, pa.binary(4)),
        "category": pa.DictionaryArray.from_arrays([0, 1, 0], ["p", "q"]),
    }
)


def written(table: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **options)
    return bytes(sink.getvalue().to_pybytes())


def with_footer(data: bytes, change: Callable[[bytes], bytes]) -> bytes:
    length = int.from_bytes(data[-8:-4], "little")
    footer = change(data[-8 - length : -8])
    return data[: -8 - length] + footer + len(footer).to_bytes(4, "little") + b"PAR1"


def ask_everything(metadata: Any) -> int:
    """What is ever asked of a chunk, and more."""
    chunks = 0
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            assert isinstance(column.path_in_schema, str)
            assert isinstance(column.compression, str)
            assert isinstance(column.encodings, tuple)
            assert isinstance(column.num_values + column.total_uncompressed_size, int)
            chunks += 1
    return chunks


@pytest.mark.parametrize("codec", ["none", "snappy", "gzip", "brotli", "zstd", "lz4"])
@pytest.mark.parametrize("version", ["1.0", "2.6"])
def test_what_pyarrow_writes_is_read(codec: str, version: str, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(written(TABLE, compression=codec, version=version, row_group_size=2, write_page_index=True))
    with open_parquet(path) as file:
        assert file.read().num_rows == 3
        assert ask_everything(file.metadata) == 2 * 7
    with path.open("rb") as handle:
        assert open_parquet(handle, pre_buffer=True).read_row_group(1).num_rows == 1
        assert not handle.closed


def test_a_footer_longer_than_the_first_read(tmp_path: Path) -> None:
    table = pa.table({f"column {place}": np.arange(600) for place in range(10)})
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, row_group_size=2)
    metadata = parquet_metadata(path)
    assert metadata.serialized_size > 1 << 16
    assert ask_everything(metadata) == 3000


def test_without_rows_or_columns() -> None:
    assert parquet_metadata(io.BytesIO(written(TABLE.slice(0, 0)))).num_rows == 0
    assert parquet_metadata(io.BytesIO(written(pa.table({})))).num_columns == 0


def test_sizes_of_texts_of_a_column_of_numbers() -> None:
    """BYTE_ARRAY (6, in zigzag 12) becomes INT32 (1, 2) in field 1, a number, of the column in the schema."""
    data = with_footer(
        written(pa.table({"a": [b"x", b"yy"]})), lambda footer: footer.replace(b"\x15\x0c", b"\x15\x02", 1)
    )
    with pytest.raises(pa.ArrowInvalid, match="sizes of texts for a column of something else"):
        open_parquet(io.BytesIO(data))


def test_another_number_of_levels_than_there_are() -> None:
    """The repetition (field 3) of a column in the schema: required (0) for optional (1) takes a level away."""
    data = written(pa.table({"a": [b"x", None]}))
    changed = with_footer(data, lambda footer: footer.replace(b"\x25\x02\x18\x01a", b"\x25\x00\x18\x01a", 1))
    assert changed != data
    with pytest.raises(pa.ArrowInvalid, match="counts 2 levels of a column that has 1"):
        open_parquet(io.BytesIO(changed))


def test_an_unknown_compression() -> None:
    """Field 4 of a column chunk, after the list of one name: 9 (in zigzag 18) for SNAPPY (1, 2)."""
    data = written(pa.table({"a": [1, 2]}))
    changed = with_footer(data, lambda footer: footer.replace(b"\x18\x01a\x15\x02", b"\x18\x01a\x15\x12", 1))
    assert changed != data
    with pytest.raises(pa.ArrowInvalid, match="compression with number 9"):
        open_parquet(io.BytesIO(changed))


def test_encrypted_columns_below_a_plain_footer() -> None:
    encryption = pytest.importorskip("pyarrow.parquet.encryption")

    class Plainly(encryption.KmsClient):
        def wrap_key(self, key_bytes: bytes, master_key_identifier: str) -> bytes:
            return key_bytes.hex().encode()

        def unwrap_key(self, wrapped_key: bytes, master_key_identifier: str) -> bytes:
            return bytes.fromhex(wrapped_key.decode())

    configuration = encryption.EncryptionConfiguration(
        footer_key="footer", column_keys={"one": ["text"]}, plaintext_footer=True
    )
    factory = encryption.CryptoFactory(lambda _: Plainly())
    properties = factory.file_encryption_properties(encryption.KmsConnectionConfig(), configuration)
    data = written(TABLE.select(["text", "number"]), encryption_properties=properties)
    with pytest.raises(pa.ArrowInvalid, match="encrypted"):
        open_parquet(io.BytesIO(data))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "does not end as a Parquet file does"),
        (b"PAR1", "does not end as a Parquet file does"),
        (b"PAR1" + bytes(8) + b"PARE", "encrypted"),
        (b"PAR1" + b"\xff\xff\xff\x7f" + b"PAR1", "2,147,483,647 bytes"),
    ],
)
def test_what_is_no_parquet(data: bytes, said: str) -> None:
    with pytest.raises(pa.ArrowInvalid, match=said):
        open_parquet(io.BytesIO(data))


@pytest.mark.parametrize(
    ("footer", "said"),
    [
        (b"\x49\x0c\x09\x08\x0c\x00", "comes twice"),  # Thrift would merge them
        (b"\x49\x15\x02\x00", "another type"),  # a list of numbers for one of row groups
        (b"\x41\x00", "another type"),
        (b"\x1c" * 100, "in one another"),
        (b"\x19\x19" * 100, "in one another"),
        (b"\x15" + b"\x80" * 20, "without end"),
        (b"\x05\xff\xff\xff\x01\x00\x00", "a field of number"),
        (b"\x18\x7f", "too early"),
        (b"\x1f\x00", "type 15"),
        (b"\x49\xfc\xff\xff\xff\xff\x0f", "out of range"),
    ],
)
def test_bytes_that_are_no_footer(footer: bytes, said: str) -> None:
    assert said in (_contradiction(footer, ()) or "")


def test_what_is_not_known_is_passed_over() -> None:
    """A byte, a truth, a double, a map and a set of fields that the format may have one day."""
    footer = b"\x13\x07" + b"\x51" + b"\x37" + bytes(8) + b"\x1b\x01\x58\x02\x01x" + b"\x1a\x23\x01\x02" + b"\x00"
    assert _contradiction(footer, ()) is None


FOOTERS = [written(TABLE, row_group_size=2, write_page_index=indexed) for indexed in (False, True)]


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 1), st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=4))
def test_damage_is_refused_or_harmless(which: int, changes: list[tuple[int, int]]) -> None:
    def damaged(footer: bytes) -> bytes:
        found = bytearray(footer)
        for place, byte in changes:
            found[place % len(found)] = byte
        return bytes(found)

    try:
        metadata = parquet_metadata(io.BytesIO(with_footer(FOOTERS[which], damaged)))
        ask_everything(metadata)
    except (pa.ArrowException, OSError, UnicodeDecodeError):
        return
