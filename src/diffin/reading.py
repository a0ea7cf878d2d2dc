"""Tables, arrays and tensors out of files that may be damaged, or made to do harm.

Each function here raises ``OSError`` or ``ValueError`` and nothing else, runs nothing that is in a file, opens regular files
only, and takes memory for what a file holds rather than for what it claims to hold.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from diffin.files import check_regular
from diffin.parquet_footer import open_parquet, parquet_metadata

if TYPE_CHECKING:
    import pyarrow as pa

Array = npt.NDArray[Any]

FREE_BYTES = 1 << 28
"""Any table may take as much memory, however small its file is."""
LARGEST_RATIO = 1000
"""More bytes in memory than this, for each in a file, are no table that anyone wrote."""


def first_line(error: BaseException) -> str:
    """What an error says, shortly."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


@contextmanager
def _as_value_error() -> Iterator[None]:
    """Whatever a library raises about a file: each has a dozen kinds, and more where bytes are not what it expects."""
    try:
        yield
    except (OSError, ValueError):
        raise
    except Exception as error:
        raise ValueError(first_line(error)) from None


def tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU."""
    from safetensors.torch import load_file

    check_regular(path)
    with _as_value_error():
        found: dict[str, Tensor] = load_file(str(path))
    return found


def described_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file and its metadata."""
    from safetensors import safe_open

    check_regular(path)
    with _as_value_error(), safe_open(str(path), framework="pt") as file:
        names = list(file.keys())
        return {name: file.get_tensor(name) for name in names}, dict(file.metadata() or {})


def table(
    path: Path,
    types: Mapping[str, pa.DataType] | Callable[[str], pa.DataType] | None = None,
    optional: Sequence[str] = (),
) -> pa.Table:
    """A Parquet file.

    Args:
        path: the file.
        types: the columns to read and what they must be, or be free of loss to be made into; or what a column of any name
            must be, to read all; ``None`` for all as they are.
        optional: columns that may be missing.
    """
    with _as_value_error(), open_parquet(path) as file:
        there = file.schema_arrow.names
        if callable(types):
            types = {name: types(name) for name in there}
        names = list(there if types is None else types)
        missing = [name for name in names if name not in there and name not in optional]
        if missing:
            raise ValueError(f"it has no column {missing[0]!r}")
        names = [name for name in names if name in there]
        if len(set(there)) < len(there):
            raise ValueError("it has two columns of one name")
        check_claims(file.metadata, range(file.metadata.num_row_groups), path.stat().st_size)
        _check_repeated(path, file.metadata, names)
        found = file.read(columns=names).select(names)
        if found.num_rows != file.metadata.num_rows:
            raise ValueError(f"it has {found.num_rows} rows and says {file.metadata.num_rows}")
        found.validate(full=True)
        if types is not None:
            for place, name in enumerate(names):
                found = found.set_column(place, name, found.column(place).cast(types[name]))
    return found


def table_rows(path: Path) -> int:
    """How many rows a Parquet file says it has."""
    with _as_value_error():
        rows = int(parquet_metadata(path).num_rows)
        if rows < 0:
            raise ValueError(f"it says that it has {rows} rows")
        return rows


def check_claims(metadata: Any, groups: Sequence[int], size: int) -> None:
    """Refuse row groups that would take far more memory than their file has bytes.

    Args:
        metadata: of the Parquet file, from :func:`~diffin.parquet_footer.open_parquet`.
        groups: numbers of the row groups to read.
        size: bytes of the file.

    Raises:
        ValueError: they would.
    """
    claimed = 0
    for number in groups:
        group = metadata.row_group(number)
        counts = [group.num_rows]
        for place in range(group.num_columns):
            column = group.column(place)
            counts.append(column.num_values)
            claimed += max(column.total_uncompressed_size, 8 * column.num_values)
        if min(counts) < 0:
            raise ValueError(f"it says that it has {min(counts)} rows")
        claimed += 8 * group.num_rows
    if claimed > max(FREE_BYTES, LARGEST_RATIO * size):
        raise ValueError(f"its {size:,} bytes would become {claimed:,} in memory")


def _check_repeated(path: Path, metadata: Any, names: Sequence[str]) -> None:
    """Refuse texts that are stored once, and repeated so often that they would take far more memory than their file."""
    import pyarrow as pa
    import pyarrow.compute as pc

    once = set()
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            own = column.path_in_schema.partition(".")[0] in names
            if own and column.physical_type == "BYTE_ARRAY" and "DICTIONARY" in " ".join(column.encodings):
                once.add(column.path_in_schema)
    if not once:
        return
    with open_parquet(path, read_dictionary=sorted(once)) as file:
        found = file.read(columns=sorted(once))
    total = 0
    for column in found.columns:
        texts = pc.list_flatten(column) if pa.types.is_list(column.type) else column
        for chunk in texts.chunks if pa.types.is_dictionary(texts.type) else ():
            total += pc.sum(pc.binary_length(chunk.dictionary).take(chunk.indices)).as_py() or 0
    size = path.stat().st_size
    if total > max(FREE_BYTES, LARGEST_RATIO * size):
        raise ValueError(f"its {size:,} bytes would become {total:,} of text in memory")


def arrays(path: Path) -> dict[str, Array]:
    """The arrays of an ``.npz`` file of numbers and text, uncompressed as ``numpy.savez`` writes it."""
    check_regular(path)
    found = {}
    with _as_value_error(), zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            # What is compressed may be small on disk and not in memory.
            if member.compress_type != zipfile.ZIP_STORED or member.file_size > path.stat().st_size:
                raise ValueError(f"{member.filename!r} is compressed, or larger than the file")
            with archive.open(member) as file:
                found[member.filename.removesuffix(".npy")] = _array(file, member.file_size)
    return found


def array(path: Path) -> Array:
    """The array of an ``.npy`` file of numbers or text."""
    check_regular(path)
    with _as_value_error(), path.open("rb") as file:
        if file.read(2) == b"PK":
            raise ValueError("it holds several arrays")
        file.seek(0)
        return _array(file, path.stat().st_size)


def _array(file: IO[bytes], size: int) -> Array:
    """An array of which header and contents are ``size`` bytes, no more and no less."""
    form = np.lib.format
    version = form.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"it is of version {version}")
    read = form.read_array_header_1_0 if version == (1, 0) else form.read_array_header_2_0
    shape, by_columns, kind = read(file)
    if kind.hasobject:
        raise ValueError("it holds objects, which are never read")
    count = 1
    for length in shape:
        count *= length
    data = file.read()
    if min(shape, default=0) < 0 or count * kind.itemsize != len(data) or len(data) > size:
        raise ValueError(f"it has {len(data)} bytes for an array of shape {shape} of {kind}")
    flat: Array = np.frombuffer(bytearray(data), kind, count)
    return flat.reshape(shape, order="F" if by_columns else "C")
