"""Finding out what kind of data something is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffin import sources
from diffin.errors import DatasetError
from diffin.export.data import Data
from diffin.export.hugging_face import HuggingFace, load
from diffin.export.images import ImageFolder
from diffin.export.parquet import Parquet
from diffin.export.webdataset import WebDataset
from diffin.sources.kinds import is_hugging_face
from diffin.sources.locations import is_remote

_SHARDS = (".parquet", ".tar")


def open_data(
    source: Any, *, label_column: str | None = None, link: bool = False, key_column: str | None = None
) -> Data:
    """The data that a model was trained on, to write a part of them.

    Args:
        source: a folder with a folder of images for each class; a folder of ``save_to_disk``, or a ``datasets.Dataset``;
            ``.parquet`` files or ``.tar`` shards of WebDataset: one, a list in the order of the training set, or a folder
            with nothing else of their kind, in the order of their names. Or one of :mod:`diffin.sources` of local files, of
            which those that could be read are meant.
        label_column: where the labels are; needed if not in the only column of classes or one called ``label`` or
            ``labels``. Of shards, ``cls`` for that member, or a key of the ``json`` member; of image folders, nothing.
        link: of image folders, make hard links where the file system can.
        key_column: where the ids are, to choose by; of shards, a key of the ``json`` member. ``None`` for what
            :mod:`diffin.sources` takes.

    Raises:
        DatasetError: it is none of them.
        MissingDependencyError: it is a Hugging Face dataset, and the library is not installed.
    """
    if is_hugging_face(source):
        return HuggingFace(source, label_column=label_column, key_column=key_column)
    if isinstance(source, sources.Images):
        return ImageFolder(source.folder, link=link)
    if isinstance(source, sources.WebDataset | sources.Parquet):
        names = source.shards if isinstance(source, sources.WebDataset) else source.files
        if any(map(is_remote, names)):
            raise DatasetError(
                f"{names[0]} is not on this machine, and parts of remote files cannot be written; copy them"
            )
        return _files([Path(name) for name in names], label_column, key_column or source.key)
    if not isinstance(source, str | Path | list | tuple) or not source:
        raise DatasetError(f"a {type(source).__name__} cannot be written; pass a folder, files, or a datasets.Dataset")
    paths = [Path(path) for path in ([source] if isinstance(source, str | Path) else source)]
    for path in paths:
        if not path.exists():
            raise DatasetError(f"there is no {path}; pass the data that the problem trains on")
    if len(paths) == 1 and paths[0].is_dir():
        return _folder(paths[0], label_column, key_column, link)
    return _files(paths, label_column, key_column)


def _folder(path: Path, label_column: str | None, key_column: str | None, link: bool) -> Data:
    if (path / "dataset_dict.json").exists():
        splits = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
        raise DatasetError(
            f"{path} holds the splits {', '.join(splits)}; pass one, e.g. {path / (splits or ['train'])[0]}"
        )
    if (path / "dataset_info.json").exists() and (path / "state.json").exists():
        return load(path, label_column, key_column)
    found = sorted(entry for entry in path.iterdir() if entry.suffix in _SHARDS and entry.is_file())
    if found:
        return _files(found, label_column, key_column)
    if label_column is not None or key_column is not None:
        name = "label_column" if label_column is not None else "key_column"
        raise DatasetError(f"{path} is read as a folder of images for each class, which says their label; no {name}")
    return ImageFolder(path, link=link)


def _files(paths: Sequence[Path], label_column: str | None, key_column: str | None) -> Data:
    kinds = {path.suffix for path in paths}
    if len(kinds) > 1 or not kinds <= set(_SHARDS) or any(path.is_dir() for path in paths):
        raise DatasetError(
            f"{', '.join(map(str, paths[:3]))}: pass one folder, or files that are all .parquet or all .tar (compressed ones "
            "unpacked)"
        )
    if len({path.name.casefold() for path in paths}) < len(paths):
        raise DatasetError("two of the files have the same name, which what is written keeps; rename one")
    if kinds == {".parquet"}:
        return Parquet(paths, label_column=label_column, key_column=key_column)
    return WebDataset(paths, label_column, key_column)
