"""Folders of images, one for each class."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any

from diffin.errors import DatasetError
from diffin.files import check_regular
from diffin.sources.base import Indices
from diffin.sources.pictures import Transform, picture
from diffin.sources.stored import Stored
from diffin.sources.unreadable import Unreadable, reason_of

# Those that torchvision.datasets.ImageFolder takes for images.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


_MOST_VISITS = 1000


class Images(Stored):
    """A folder with a folder of images for each class, in the order of ``torchvision.datasets.ImageFolder``.

    An item is the image and the number of its class; its key is its path in the folder.

    Args:
        folder: of the folders.
        transform: of a ``PIL.Image`` in RGB; ``None`` for Float32[Tensor, "3 H W"] of 0 to 1.

    Attributes:
        folder: the same.
        classes: names of the folders, in the order of their numbers.

    Raises:
        DatasetError: there are no images.
    """

    def __init__(self, folder: str | Path, transform: Transform | None = None) -> None:
        import pyarrow as pa

        self.folder = Path(folder).absolute()
        if not self.folder.is_dir():
            raise DatasetError(f"there is no folder {folder}; pass one with a folder of images for each class")
        self.transform, self.classes = transform, class_folders(self.folder)
        # In one piece of memory: a million paths as objects would take a hundred times the memory of a model.
        self._paths = pa.array(
            ((PurePath(name) / path).as_posix() for name in self.classes for path in image_files(self.folder, name)),
            pa.large_string(),
        )
        if not len(self._paths):
            raise DatasetError(f"{folder} holds no images in a folder of each class; pass one that does")
        self._numbers = {name: number for number, name in enumerate(self.classes)}

    def __len__(self) -> int:
        return len(self._paths)

    def keys(self, positions: Sequence[int] | Indices) -> list[str]:
        return [self._paths[position].as_py() for position in self._in_range(positions)]

    def read(self, positions: Sequence[int]) -> list[Any]:
        return [self._stored(path) for path in self.keys(positions)]

    def decoded(self, stored: tuple[bytes, int]) -> tuple[Any, int]:
        data, number = stored
        return picture(data, self.transform), number

    def _stored(self, path: str) -> tuple[bytes, int] | Unreadable:
        try:
            check_regular(self.folder / path)
            return (self.folder / path).read_bytes(), self._numbers[path.partition("/")[0]]
        except OSError as error:
            return Unreadable(reason_of(error))


def class_folders(root: Path) -> list[str]:
    """The names of the classes, in order."""
    return sorted(entry.name for entry in root.iterdir() if entry.is_dir())


def image_files(root: Path, name: str) -> Iterator[PurePath]:
    """The images of a class, in order: those in sorted folders of any depth, relative to the folder of the class.

    Raises:
        DatasetError: links lead round in a circle.
    """
    found, visits = [], Counter[tuple[int, int]]()
    for folder, _, files in os.walk(root / name, followlinks=True):
        status = Path(folder).stat()
        place = (status.st_dev, status.st_ino)
        visits[place] += 1
        # A link to a folder above it is followed until the path is too long; two of them, until the end of time.
        if visits[place] > _MOST_VISITS:
            raise DatasetError(f"links in {root / name} lead to {folder} again and again; remove them")
        found.append((folder, files))
    for folder, files in sorted(found):
        for file in sorted(files):
            if file.lower().endswith(EXTENSIONS):
                yield (Path(folder) / file).relative_to(root / name)
