"""Ways to damage a file: its bytes, or what they mean. All that is drawn comes from a ``random.Random``."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

_DEEP = "@deep@"
STRANGE: list[Any] = [
    None, True, False, -1, 0, 1, 3, 2**31, 2**53, 2**63, 10**12, 10**30, -(10**400), 0.5, 1e308, float("nan"),
    float("inf"), "", "x", "1", "é" * 300, "../../../../etc/passwd", "/etc/passwd", "a\0b", "\ud800", [], {}, [[]],
    [1, "a", None], {"a": 1}, {"": {}}, [0] * 5000, _DEEP,
]  # fmt: skip
NAMES = ["", ".", "..", "../x", "/etc/passwd", "u/", "/", "\ud800", "a\0b", "x" * 5000, "0"]


def damaged_bytes(data: bytes, random: Random) -> bytes:
    """Cut off, flipped, overwritten, inserted, repeated, or with a huge number in it."""
    found = bytearray(data)
    at = random.randrange(len(found) + 1)
    length = random.choice([1, 2, 4, 8, 64, 512])
    way = random.randrange(9)
    if way == 0:
        return bytes(found[:at])
    if way == 1:
        for _ in range(random.choice([1, 2, 8])):
            if found:
                found[random.randrange(len(found))] ^= 1 << random.randrange(8)
    elif way == 2:
        found[at : at + length] = random.choice([b"\0", b"\xff", b"\x80", b"7"]) * length
    elif way == 3:
        found[at : at + length] = bytes(random.randrange(256) for _ in range(length))
    elif way == 4:
        found[at:at] = found[:length] if random.randrange(2) else b"\xfe\xff" * length
    elif way == 5:
        del found[at : at + length]
    elif way == 6:
        number = random.choice([-1, 2**31 - 1, 2**31, 2**40, 2**62])
        found[at : at + 8] = struct.pack(random.choice("<>") + "q", number)
    elif way == 7:
        found += found[:length] * random.choice([1, 50])
    else:
        return b""
    return bytes(found)


def damaged_json(text: str, random: Random) -> str:
    """With an entry that is missing, renamed, or something else."""
    value = json.loads(text)
    for _ in range(random.choice([1, 1, 1, 2, 4])):
        value = _changed(value, random)
    deep = random.choice([90, 150, 900, 100_000])
    kind = random.choice(["[]", "{}"])
    inner = "[" * deep + "]" * deep if kind == "[]" else '{"a":' * deep + "1" + "}" * deep
    return json.dumps(value).replace(json.dumps(_DEEP), inner)


def _changed(value: Any, random: Random) -> Any:
    if not isinstance(value, dict | list) or not value or random.randrange(6) == 0:
        return random.choice(STRANGE)
    if isinstance(value, dict):
        key = random.choice(sorted(value))
        way = random.randrange(8)
        if way == 0:
            return {name: entry for name, entry in value.items() if name != key}
        if way == 1:
            renamed = random.choice([*NAMES, *value])
            return {(renamed if name == key else name): entry for name, entry in value.items()}
        if way == 2:
            return {**value, random.choice(NAMES): random.choice(STRANGE)}
        return {**value, key: _changed(value[key], random)}
    place = random.randrange(len(value))
    way = random.randrange(6)
    if way == 0:
        return value[:place] + value[place + 1 :]
    if way == 1:
        return value + [value[place]] * random.choice([1, 3])
    return [*value[:place], _changed(value[place], random), *value[place + 1 :]]


def damaged_safetensors(data: bytes, random: Random) -> bytes:
    """With another header: shapes, types, offsets and names that do not fit what follows."""
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    names = [name for name in header if name != "__metadata__"]
    if names and random.randrange(3) == 0:
        entry = header[random.choice(names)]
        way = random.randrange(4)
        if way == 0:
            entry["shape"] = random.choice(
                [[10**12], [0, 2**40], [2**62, 4], [-1], [1] * 70, [], *([[n] for n in (1, 2)])]
            )
        elif way == 1:
            entry["dtype"] = random.choice(["F16", "F64", "I64", "U8", "BOOL", "F8_E4M3", "C64", "F4", "I128", "x"])
        elif way == 2:
            entry["data_offsets"] = random.choice([[0, 2**60], [8, 0], [0, 0], [-1, 4]])
        else:
            entry["shape"] = [*entry["shape"][::-1], 1]
        text = json.dumps(header)
    else:
        text = damaged_json(json.dumps(header), random)
    packed = text.encode("utf-8", "surrogatepass")
    length = len(packed) if random.randrange(8) else random.choice([0, 2**63, len(packed) + 1, 100_000_001])
    return struct.pack("<Q", length) + packed + data[8 + size :]


def damaged_parquet(data: bytes, random: Random) -> bytes:
    """With columns of other types, or missing, or with gaps; other rows; text that is none."""
    table = pq.read_table(io.BytesIO(data))
    for _ in range(random.choice([1, 1, 2])):
        table = _other_table(table, random)
    out = io.BytesIO()
    pq.write_table(
        table, out, compression=random.choice(["none", "zstd", "snappy"]), store_schema=bool(random.randrange(2))
    )
    return out.getvalue()


def _other_table(table: pa.Table, random: Random) -> pa.Table:
    if not table.num_columns:
        return table
    place = random.randrange(table.num_columns)
    name, rows = table.column_names[place], table.num_rows
    way = random.randrange(10)
    if way == 0:
        return table.remove_column(place)
    if way == 1:
        return table.slice(0, random.choice([0, rows // 2]))
    if way == 2:
        return pa.concat_tables([table] * random.choice([2, 3]))
    if way == 3:
        return table.take(pa.array(random.sample(range(rows), rows), pa.int64()))
    if way == 4:
        other = random.choice(NAMES).encode("utf-8", "replace").decode()
        return table.rename_columns([other if entry == name else entry for entry in table.column_names])
    column = table.column(place).to_pylist()
    if way == 5:
        column = [None if random.randrange(2) else entry for entry in column]
        return table.set_column(place, name, pa.array(column, table.schema.field(place).type))
    if way == 6:
        bad = pa.array([b"\xff\xfe\x80"] * rows, pa.binary())
        text = pa.StringArray.from_buffers(rows, bad.buffers()[1], bad.buffers()[2])
        return table.set_column(place, name, text)
    if way == 7:
        return table.set_column(place, name, pa.array([[1, None]] * rows, pa.list_(pa.int64())))
    value = random.choice([None, "x", "{", "[" * 5000, "[[]]", -1, 2**62, 0.5, float("nan"), True, b"x"])
    return table.set_column(place, name, pa.array([value] * rows))


def damaged_npz(data: bytes, random: Random) -> bytes:
    """With arrays of other types and shapes, headers that claim more than there is, and what is compressed."""
    with np.load(io.BytesIO(data)) as file:
        arrays = {name: file[name] for name in file.files}
    name = random.choice(sorted(arrays))
    array = arrays[name]
    way = random.randrange(9)
    other: list[Any] = [
        array.astype(np.float32), array.astype(str), array.reshape(-1), array[None], array[:0], np.array(object(), object),
        np.full_like(array, -1), np.full(array.shape, 2**62), np.zeros(3, "M8[s]"), np.zeros(2, [("a", "f8")]),
    ]  # fmt: skip
    if way == 0:
        del arrays[name]
    elif way < 6:
        arrays[name] = random.choice(other)
    out = io.BytesIO()
    save: Callable[..., None] = np.savez_compressed if way == 6 else np.savez
    save(out, **arrays)
    if way < 7:
        return out.getvalue()
    shape = random.choice([(10**12,), (2**40, 2**40), (-1,), (1,) * 40, (0, 10**15)])
    claim = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape!r}, }}".encode()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for kept, content in arrays.items():
            inner = io.BytesIO()
            np.save(inner, content)
            whole = inner.getvalue()
            if kept == name:
                whole = b"\x93NUMPY\x01\0" + struct.pack("<H", len(claim) + 1) + claim + b"\n" + b"x" * 64
            archive.writestr(f"{kept}.npy", whole)
    return out.getvalue()


def damaged_tar(data: bytes, random: Random) -> bytes:
    """With another field in a header, and the checksum that fits it."""
    found = bytearray(data)
    headers = [at for at in range(0, len(found), 512) if found[at + 257 : at + 262] == b"ustar"]
    if not headers:
        return damaged_bytes(data, random)
    at = random.choice(headers)
    header = bytearray(found[at : at + 512])
    way = random.randrange(6)
    if way == 0:
        header[156:157] = random.choice(
            [b"0", b"1", b"2", b"3", b"5", b"6", b"x", b"g", b"L", b"K", b"S", b"X", b"\0", b"z"]
        )
    elif way == 1:
        size = random.choice([0, 1, 511, 512, 2**20, 8**11 - 1])
        header[124:136] = b"%011o\0" % size
    elif way == 2:
        number = random.choice([-1, -512, -1024, -(2**60), 2**60, 2**40])
        header[124:136] = (b"\xff" if number < 0 else b"\x80") * 4 + number.to_bytes(8, "big", signed=True)
    elif way == 3:
        name = random.choice(
            [b"../x.png", b"/x.png", b"a/.png", b".", b"\xff\xfe.txt", b"a/" * 49 + b"b", b"C:x.txt", b"", b"a\nb.cls"]
        )
        header[:100] = name.ljust(100, b"\0")
    elif way == 4:
        header[345:500] = random.choice([b"..", b"/", b"a" * 155, b"\xff"]).ljust(155, b"\0")
    else:
        place = random.randrange(512)
        header[place] = random.randrange(256)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    found[at : at + 512] = header
    if random.randrange(4) == 0:
        found[at + 512 : at + 532] = random.choice(
            [b"19 size=-1\n", b"30 GNU.sparse.major=1\n", b"9" * 20, b"11 path=/x\n"]
        ).ljust(20)
    return bytes(found)


def damaged_npy(data: bytes, random: Random) -> bytes:
    """With a header that says something else."""
    kind = random.choice(
        ["'<f8'", "'|O'", "[('f0','<u8'),('f1','<u8')]", "'<U9'", "'|V16'", "7", "'" + "x" * 900 + "'"]
    )
    shape = random.choice(
        ["(3,)", "(10**3,)", "(1000000000000,)", "(0, 1000000000000)", "(-1,)", "3", "()", "(3", "('a',)"]
    )
    text = (
        f"{{'descr': {kind}, 'fortran_order': {random.choice(['False', 'True', '1'])}, 'shape': {shape}, }}\n".encode()
    )
    version = random.choice([1, 1, 2, 3, 9])
    return (
        b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(text)) + text + data[-48:]
    )


def damaged_place(path: Path, random: Random) -> None:
    """Gone, or something that is no file; or another of its folder."""
    # A damage before this one may have left links, which can lead to the very file that goes now.
    others = sorted(
        other for other in path.parent.iterdir() if other.is_file() and not other.is_symlink() and other != path
    )
    way = random.randrange(8)
    held = path.read_bytes()
    path.unlink()
    if way == 0:
        path.mkdir()
    elif way == 1:
        os.mkfifo(path)
    elif way == 2:
        path.symlink_to("/dev/zero")
    elif way == 3:
        path.symlink_to(path.name)
    elif way == 4:
        path.symlink_to("/dev/null")
    elif way == 5 and others:
        shutil.copyfile(random.choice(others), path)
    elif way == 6:
        path.symlink_to(path.with_name("elsewhere"))
        path.with_name("elsewhere").write_bytes(held)


STRUCTURED: dict[str, Callable[[bytes, Random], bytes]] = {
    ".json": lambda data, random: damaged_json(data.decode(), random).encode("utf-8", "surrogatepass"),
    ".safetensors": damaged_safetensors,
    ".parquet": damaged_parquet,
    ".npz": damaged_npz,
    ".npy": damaged_npy,
    ".tar": damaged_tar,
}
"""By the ending of a file."""


def damage(folder: Path, random: Random) -> str:
    """Damage one file of a folder, and say how."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
    if not files:
        return "nothing left"
    path = random.choice(files)
    kind = STRUCTURED.get(path.suffix)
    way = random.randrange(10)
    if way == 0:
        damaged_place(path, random)
        return f"{path.relative_to(folder)}: in its place"
    structured = kind is not None and way < 7
    data = path.read_bytes()
    try:
        found = kind(data, random) if kind is not None and structured else damaged_bytes(data, random)
    except Exception:  # damaged before, or what cannot be written: nothing to be read, either
        found = damaged_bytes(data, random)
    path.write_bytes(found)
    return f"{path.relative_to(folder)}: {'structure' if structured else 'bytes'}"
