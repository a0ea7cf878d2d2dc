"""Small shards on disk, and readers of them that share nothing with the code under test."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

Sample = dict[str, bytes]


def png(number: int) -> bytes:
    """A picture of 4 x 3 of which every pixel says the number."""
    pixels = np.full((3, 4, 3), [number % 256, number // 256, 7], np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def number_in(image: np.ndarray) -> int:
    """The number of a picture, as an array of 3 x H x W between 0 and 1."""
    return round(float(image[0, 0, 0]) * 255) + 256 * round(float(image[1, 0, 0]) * 255)


def uid(number: int) -> str:
    return f"{number * 0x9E3779B97F4A7C15F39CC0605CEDC834 % 2**128:032x}"


def sample(number: int) -> Sample:
    return {
        "png": png(number),
        "txt": f"picture number {number}".encode(),
        "json": json.dumps({"uid": uid(number), "width": 4}).encode(),
    }


def pack(path: Path, samples: Iterable[tuple[str, Sample]], form: int = tarfile.USTAR_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as archive:
        for key, members in samples:
            for kind, data in members.items():
                info = tarfile.TarInfo(f"{key}.{kind}")
                # A time that is no whole number needs an extended header in one of the formats.
                info.size, info.mtime = len(data), 1_600_000_000.25
                archive.addfile(info, io.BytesIO(data))
    return path


def shards(folder: Path, counts: Iterable[int] = (5, 1, 4)) -> list[Path]:
    """Numbered samples in shards of so many, of all three formats, with names that some of them need extended headers for."""
    paths, first = [], 0
    forms = [tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT]
    for number, count in enumerate(counts):
        prefix = ("deep/" * 30) if number == 2 else f"in/{'é' if number == 0 else 'e'}"
        path = folder / f"{number:03}.tar"
        pack(path, [(f"{prefix}{k:06}", sample(k)) for k in range(first, first + count)], forms[number % 3])
        paths.append(path)
        first += count
    return paths


def by_tarfile(path: Path) -> list[tuple[str, Sample]]:
    found: dict[str, Sample] = {}
    with tarfile.open(path) as archive:
        for member in archive:
            file = archive.extractfile(member)
            if file is not None:
                folder, _, name = member.name.rpartition("/")
                key, _, kind = name.partition(".")
                found.setdefault(f"{folder}/{key}" if folder else key, {})[kind] = file.read()
    return list(found.items())


def members_of(stored: Sample) -> Sample:
    """A decoder that leaves everything as it is."""
    return stored


def number_of(stored: Sample) -> int:
    return int(stored["txt"].split()[-1])
