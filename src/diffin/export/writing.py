"""Writing beside the destination, and renaming into it when everything is there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from diffin.errors import DatasetError
from diffin.export.chosen import Chosen
from diffin.export.data import Data
from diffin.export.labels import new_labels
from diffin.files import PART_SUFFIX, sync_folder

_MARK, _RESULT, _SCRATCH = "diffin-export", "result", "scratch"


def export(data: Data, destination: str | Path, chosen: Chosen) -> Path:
    """Write what stays of the data, in the form that they are in.

    Args:
        data: see :func:`diffin.export.open_data`.
        destination: a folder that does not exist yet, or is empty. It appears when all of it is written: before, there is
            ``<destination>.part``, which the next call removes.
        chosen: which samples stay, under which labels.

    Raises:
        DatasetError: the data do not hold the samples that were scored, or the destination cannot be written. Then there is
            nothing at the destination.
    """
    return export_parts(data, destination, {"": chosen})


def export_parts(data: Data, destination: str | Path, parts: Mapping[str, Chosen]) -> Path:
    """Write several parts of the data, each into a folder of that name in the destination; all appear at once.

    Raises:
        DatasetError: as :func:`export`.
    """
    destination = Path(destination)
    check_destination(data, destination)
    planned = {}
    for name, chosen in parts.items():
        if data.size != chosen.size:
            raise DatasetError(
                f"{data.where} holds {data.size:,} samples, and {chosen.size:,} were scored; pass the data that the problem "
                "trains on, all of them and nothing else"
            )
        planned[name] = (chosen, new_labels(data, chosen))
    try:
        with _staged(destination) as (result, scratch):
            for name, (chosen, labels) in planned.items():
                folder = result / name
                folder.mkdir(exist_ok=True)
                data.write(folder, scratch, chosen, labels)
    except OSError as error:
        raise DatasetError(
            f"could not write {destination} ({error}); free some space, or pass another destination"
        ) from error
    return destination


def check_destination(data: Data, destination: str | Path) -> None:
    """Whether the data may be written there, asked before hours are spent on what to write.

    Raises:
        DatasetError: something is there, or it lies inside the data.
    """
    destination = Path(destination)
    if destination.is_symlink() or (destination.exists() and not destination.is_dir()):
        raise DatasetError(f"{destination} is no folder; pass one that does not exist yet")
    if destination.is_dir() and any(destination.iterdir()):
        raise DatasetError(f"{destination} is not empty; pass a folder that does not exist yet, or empty it")
    for source in data.files:
        if source.is_dir() and destination.resolve().is_relative_to(source.resolve()):
            raise DatasetError(f"{destination} lies inside {source}, which is read; pass a folder outside of it")
    part = _part(destination)
    if part.is_symlink() or (part.exists() and not _is_ours(part)):
        raise DatasetError(f"{part} is in the way, and was not left by an export; move it, or pass another destination")


@contextmanager
def _staged(destination: Path) -> Iterator[tuple[Path, Path]]:
    """Yield a folder that becomes ``destination``, and one for files needed meanwhile."""
    part = _part(destination)
    if part.exists():
        _remove(part)
    part.mkdir(parents=True)
    try:
        (part / _MARK).touch()
        (part / _RESULT).mkdir()
        (part / _SCRATCH).mkdir()
        yield part / _RESULT, part / _SCRATCH
        if hasattr(os, "sync"):  # One call, where syncing each of a million pictures would take hours.
            os.sync()
        if destination.exists():
            destination.rmdir()  # Fails if something has come to be in it.
        (part / _RESULT).rename(destination)
        sync_folder(destination.parent)
    finally:
        _remove(part)


def _part(destination: Path) -> Path:
    destination = destination.absolute()
    return destination.with_name(destination.name + PART_SUFFIX)


def _remove(part: Path) -> None:
    for name in (_RESULT, _SCRATCH):
        shutil.rmtree(part / name, ignore_errors=True)
    # The mark goes last: what is left if this is killed is still known as ours.
    shutil.rmtree(part, ignore_errors=True)


def _is_ours(part: Path) -> bool:
    return part.is_dir() and ((part / _MARK).is_file() or not any(part.iterdir()))
