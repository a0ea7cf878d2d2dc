"""Subset files of DataComp: which samples to train on, by their ids, as its ``resharder.py`` reads them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from diffin import reading
from diffin.errors import DatasetError
from diffin.files import write_atomically

_UID = re.compile(r"[0-9a-fA-F]{32}")
_KIND = np.dtype("u8,u8")
_LISTED = 3


def subset_file(uids: Iterable[str], path: str | Path) -> Path:
    """Write ids of 128 bits as a ``.npy`` file of a pair of ``uint64`` each, the upper half first, in ascending order.

    Args:
        uids: 32 hexadecimal digits each, no two the same.
        path: of the file; it appears when it is complete.

    Returns:
        The path.

    Raises:
        DatasetError: an id is something else, or comes twice, and which; or the file cannot be written.
    """
    path, wanted = Path(path), list(uids)
    wrong = [uid for uid in wanted if not (isinstance(uid, str) and _UID.fullmatch(uid))]
    if wrong:
        raise DatasetError(
            f"{len(wrong):,} of {len(wanted):,} ids are not 32 hexadecimal digits: {_some(map(repr, wrong))}; pass the uid "
            'of each sample, e.g. of diffin.sources.WebDataset(..., key="uid")'
        )
    halves = np.frombuffer(bytes.fromhex("".join(wanted)), ">u8").reshape(-1, 2).astype(np.uint64)
    order = np.lexsort((halves[:, 1], halves[:, 0]))
    halves = halves[order]
    twice = np.flatnonzero((halves[1:] == halves[:-1]).all(axis=1))
    if len(twice):
        same = np.unique(halves[twice], axis=0)
        raise DatasetError(
            f"{len(same):,} ids come more than once: {_some(_written(same[:_LISTED]), len(same))}; pass each once"
        )
    pairs = np.empty(len(halves), _KIND)
    pairs["f0"], pairs["f1"] = halves.T
    try:
        with write_atomically(path) as part, part.open("wb") as file:
            np.save(file, pairs)
    except OSError as error:
        raise DatasetError(f"could not write {path} ({error}); pass another path") from error
    return path


def read_subset_file(path: str | Path) -> list[str]:
    """The ids in a subset file, in small letters, ascending.

    Raises:
        DatasetError: it cannot be read, or holds something else.
    """
    try:
        pairs = reading.array(Path(path))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path} cannot be read as a subset file ({error}); pass one of subset_file") from error
    if pairs.ndim != 1 or pairs.dtype != _KIND:
        raise DatasetError(
            f"{path} holds {pairs.dtype} of shape {pairs.shape}, not pairs of uint64 ({_KIND.str or 'u8,u8'}); pass one "
            "of subset_file"
        )
    return _written(np.stack([pairs["f0"], pairs["f1"]], axis=1))


def _written(halves: npt.NDArray[np.uint64]) -> list[str]:
    digits = halves.astype(">u8").tobytes().hex()
    return [digits[start : start + 32] for start in range(0, len(digits), 32)]


def _some(told: Iterable[str], count: int | None = None) -> str:
    listed = list(told)
    more = (len(listed) if count is None else count) - len(listed[:_LISTED])
    return ", ".join(listed[:_LISTED]) + (f" and {more:,} more" if more else "")
