"""What kind of dataset an object is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.utils.data import IterableDataset


def is_map_style(dataset: Any) -> bool:
    """Whether ``dataset`` has a length and gives samples by index."""
    if isinstance(dataset, (IterableDataset, Mapping, str, bytes)):
        return False
    return hasattr(dataset, "__getitem__") and length_of(dataset) is not None


def length_of(dataset: Any) -> int | None:
    """``len(dataset)``, ``None`` where that is unknown."""
    try:
        return len(dataset)
    except (TypeError, NotImplementedError):
        return None


def is_hugging_face(dataset: Any) -> bool:
    """Whether ``dataset`` is a map-style ``datasets.Dataset``; the package is not imported to find out."""
    return type(dataset).__module__.split(".")[0] == "datasets" and hasattr(dataset, "__getitems__")


def torch_formatted(dataset: Any) -> Any:
    """A Hugging Face dataset without a format, map-style or streamed, with the torch format; others unchanged."""
    if type(dataset).__module__.split(".")[0] != "datasets" or not hasattr(dataset, "with_format"):
        return dataset
    chosen = dataset.format["type"] if is_hugging_face(dataset) else getattr(dataset, "_formatting", None)
    return dataset.with_format("torch") if chosen is None else dataset
