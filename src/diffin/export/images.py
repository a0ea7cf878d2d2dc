"""Image folders: one folder a class."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

from diffin.errors import DatasetError
from diffin.export.chosen import Chosen
from diffin.export.data import Data
from diffin.files import check_regular
from diffin.sources.images import class_folders, image_files


class ImageFolder(Data):
    """A folder with a folder of images for each class, in the order of ``torchvision.datasets.ImageFolder``.

    Sorted classes; in each, sorted folders of any depth, and the sorted images in each. Other files are not samples.

    Args:
        root: the folder.
        link: make hard links where the file system can, which cost no space; a change of one is then a change of both.

    Raises:
        DatasetError: there are no images.
    """

    def __init__(self, root: Path, *, link: bool = False) -> None:
        self.where, self.files, self.label, self._root, self._link = str(root), (root,), "the folder", root, link
        self._classes = class_folders(root)
        self._paths = [(name, path) for name in self._classes for path in image_files(root, name)]
        self.size = len(self._paths)
        if not self._paths:
            raise DatasetError(
                f"{root} holds no images in a folder of each class, no dataset of save_to_disk, and no .parquet or .tar "
                "files; pass one that does"
            )

    def labels(self) -> Iterator[str]:
        return (name for name, _ in self._paths)

    def label_of(self, number: int) -> str | None:
        return self._classes[number] if 0 <= number < len(self._classes) else None

    def keys(self) -> Iterator[str]:
        return ((PurePath(name) / path).as_posix() for name, path in self._paths)

    def write(self, folder: Path, scratch: Path, chosen: Chosen, labels: Mapping[int, Any]) -> None:
        for name in self._classes:
            # Also the ones that are empty now: readers number the classes by these folders.
            (folder / name).mkdir()
        taken = {_folded(name, path) for name, path in self._paths}
        for position in chosen.index.tolist():
            name, path = self._paths[position]
            target = PurePath(name) / path
            if position in labels:
                target = _free(PurePath(labels[position]), path, name, taken)
            (folder / target).parent.mkdir(parents=True, exist_ok=True)
            self._put(self._root / name / path, folder / target)

    def _put(self, source: Path, target: Path) -> None:
        if self._link:
            try:
                os.link(source.resolve(), target)
            except OSError:  # Another file system, or one without links.
                pass
            else:
                return
        check_regular(source)
        shutil.copy2(source, target)


def _folded(name: str, path: PurePath) -> str:
    return (PurePath(name) / path).as_posix().casefold()


def _free(name: PurePath, path: PurePath, came_from: str, taken: set[str]) -> PurePath:
    """A place in the folder of another class that no image has or had; taken from then on."""
    candidate, number = path, 1
    while (folded := _folded(str(name), candidate)) in taken:
        suffix = f".from-{came_from}" + (f"-{number}" if number > 1 else "")
        candidate, number = path.with_name(path.stem + suffix + path.suffix), number + 1
    taken.add(folded)
    return name / candidate
