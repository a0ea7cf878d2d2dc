"""Hugging Face datasets: an object, or a folder of ``save_to_disk``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffin.errors import DatasetError, MissingDependencyError
from diffin.export.chosen import Chosen
from diffin.export.data import Data
from diffin.export.parquet import LABELS, column_named


class HuggingFace(Data):
    """A ``datasets.Dataset``.

    Args:
        dataset: the object.
        path: the folder it was loaded from, if it was.
        label_column: the column of labels; ``None`` for the only one of classes, or one called ``label`` or ``labels``.
        key_column: the column of ids; ``None`` if there is none.

    Raises:
        DatasetError: there is no such column.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        path: Path | None = None,
        label_column: str | None = None,
        key_column: str | None = None,
    ) -> None:
        self._dataset = dataset
        self.where = "the dataset" if path is None else str(path)
        self.files = (
            tuple(Path(cached["filename"]).parent for cached in dataset.cache_files) if path is None else (path,)
        )
        self.size = len(dataset)
        classes = [name for name, feature in dataset.features.items() if type(feature).__name__ == "ClassLabel"]
        usual = classes if len(classes) == 1 else LABELS
        self.label = column_named(label_column, usual, dataset.column_names, self.where)
        self._key = column_named(key_column, (), dataset.column_names, self.where, "key_column")

    def labels(self) -> list[Any]:
        return self._column(self.label)

    def keys(self) -> list[str]:
        if self._key is None:
            raise DatasetError(
                f"nothing says what the samples of {self.where} are called; name a column with key_column"
            )
        return [str(key) for key in self._column(self._key)]

    def _column(self, name: str | None) -> list[Any]:
        # By way of Arrow, which no transform of the dataset touches.
        column = self._dataset.select_columns([name]).with_format("arrow")[:].column(0)
        found: list[Any] = column.to_pylist()
        return found

    def label_of(self, number: int) -> int:
        return number

    def write(self, folder: Path, scratch: Path, chosen: Chosen, labels: Mapping[int, Any]) -> None:
        dataset = self._dataset if not labels else self._relabelled(scratch, labels)
        index = chosen.index.astype(np.int64)
        _saveable(dataset.select(index)).save_to_disk(str(folder))

    def _relabelled(self, scratch: Path, labels: Mapping[int, Any]) -> Any:
        dataset, name, form = self._dataset, self.label, self._dataset.format
        if dataset._indices is not None:
            # A column can only be put beside rows that are stored in order; as Arrow, so that nothing is decoded. In our
            # own folder, as otherwise the library would write beside the source.
            rows = str(scratch / f"rows-{len(list(scratch.iterdir()))}.arrow")
            dataset = dataset.with_format("arrow").flatten_indices(cache_file_name=rows)
        values = self.labels()
        for position, label in labels.items():
            values[position] = label
        feature, names = dataset.features[name], dataset.column_names
        dataset = dataset.with_format(None).remove_columns([name]).add_column(name, values, feature=feature)
        return dataset.select_columns(names).with_format(
            form["type"],
            columns=form["columns"],
            output_all_columns=form["output_all_columns"],
            **form["format_kwargs"],
        )


def _saveable(dataset: Any) -> Any:
    """Without the function of ``set_transform``, which no folder can hold."""
    return dataset.with_format(None) if dataset.format["type"] == "custom" else dataset


def load(path: Path, label_column: str | None, key_column: str | None) -> HuggingFace:
    """Open a folder of ``save_to_disk``.

    Raises:
        DatasetError: it is damaged, or holds several splits.
        MissingDependencyError: the library is not installed.
    """
    try:
        from datasets import load_from_disk
    except ImportError as error:
        raise MissingDependencyError(
            f'{path} is a Hugging Face dataset, and the library is not installed: run pip install "diffin[hf]"'
        ) from error
    try:
        dataset = load_from_disk(str(path))
    except Exception as error:  # the library has no common kind
        raise DatasetError(f"the dataset in {path} cannot be read ({error}); save it again") from error
    return HuggingFace(dataset, path=path, label_column=label_column, key_column=key_column)
