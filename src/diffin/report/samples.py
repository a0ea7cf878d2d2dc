"""How one item of a data set is shown: as a picture, as text, or as a row of named values."""

from __future__ import annotations

import base64
import io
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor

from diffin.report.dependencies import require
from diffin.tasks.supervised import TARGET_KEYS

LARGEST_SIDE = 320
"""Pictures are shrunk to this many pixels a side, so that a page of fifty stays light."""
CRISP_BELOW = 96
"""Pictures smaller than this are enlarged without smoothing."""
MOST_CHARACTERS = 4000
MOST_COLUMNS = 40
MOST_NUMBERS = 12

_IMAGE_KEYS = ("image", "img", "picture", "pixel_values", "pixels")
_TEXT_KEYS = ("text", "sentence", "caption", "content", "document", "review", "prompt", "question", "title")
_INPUT_KEYS = ("input", "inputs", "features", "x", "data")


@dataclass(frozen=True)
class Shown:
    """What a page shows of an item.

    Attributes:
        kind: what it is shown as; ``"none"`` when no data set was given.
        picture: a PNG as a data URI (``kind="picture"``).
        crisp: whether the picture is tiny and is to be enlarged without smoothing.
        text: the text (``kind="text"``), or the caption of a picture.
        row: names and values (``kind="row"``).
    """

    kind: Literal["picture", "text", "row", "none"]
    picture: str = ""
    crisp: bool = False
    text: str = ""
    row: tuple[tuple[str, str], ...] = ()


def show_item(item: Any, show: Callable[[Any], Any] | None = None) -> Shown:
    """Show an item of a data set.

    Args:
        item: as the data set returns it; of ``(input, target, ...)`` the input is shown.
        show: what the problem says to show of it: a picture, a string, or a mapping; it is shown as it is.
    """
    if show is not None:
        wanted = show(item)
        return _show(wanted) if not isinstance(wanted, Mapping) else _show_mapping(wanted, chosen=True)
    if isinstance(item, tuple) and item:
        return _show(item[0])
    if isinstance(item, list) and len(item) > 1 and not _is_numbers(item):
        return _show(item[0])
    return _show(item)


def _show(value: Any) -> Shown:
    if isinstance(value, str):
        return Shown("text", text=_shortened(value))
    if isinstance(value, Mapping):
        return _show_mapping(value)
    picture = _picture(value)
    if picture is not None:
        return picture
    array = _array(value)
    if array is not None and array.ndim == 1 and array.size:
        return _show_row({f"x{i}": x for i, x in enumerate(array[:MOST_NUMBERS])}, array.size)
    if isinstance(value, (tuple, list)) and value:
        pictures = [shown for shown in map(_picture, value) if shown is not None]
        if pictures:
            return pictures[0]
        if all(isinstance(part, str) for part in value):
            return Shown("text", text=_shortened(" ".join(value)))
    return Shown("text", text=_brief(value))


def _show_mapping(item: Mapping[Any, Any], chosen: bool = False) -> Shown:
    """A mapping by what its keys tell; of one that the user has ``chosen`` every column is shown."""
    names = {str(key).lower(): key for key in item}
    texts = [item[names[key]] for key in _TEXT_KEYS if key in names and isinstance(item[names[key]], str)]
    for key in _IMAGE_KEYS:
        shown = _picture(item[names[key]]) if key in names else None
        if shown is not None:
            return Shown("picture", shown.picture, shown.crisp, _shortened(texts[0]) if texts else "")
    if chosen:
        return _show_row({str(key): value for key, value in item.items()}, len(item))
    if texts:
        return Shown("text", text=_shortened(texts[0]))
    for key in _INPUT_KEYS:
        if key in names and not isinstance(item[names[key]], (int, float, bool)):
            return _show(item[names[key]])
    columns = {str(key): value for key, value in item.items() if str(key).lower() not in TARGET_KEYS}
    return _show_row(columns, len(columns))


def _show_row(columns: Mapping[str, Any], total: int) -> Shown:
    row = [(name, _brief(value)) for name, value in list(columns.items())[:MOST_COLUMNS]]
    if total > len(row):
        row.append(("\u2026", f"{total - len(row):,} more"))
    return Shown("row", row=tuple(row))


def _picture(value: Any) -> Shown | None:
    """The value as a picture, if it is one: a PIL image, or an array of shape (H, W), (1|3, H, W) or (H, W, 1|3)."""
    # Whatever is a PIL image has been made by Pillow: without it there is none to recognise.
    if type(value).__module__.partition(".")[0] == "PIL":
        if value.mode.partition(";")[0] not in ("I", "F"):
            return _encoded(value.convert("RGBA" if "A" in value.getbands() else "RGB"))
        value = np.asarray(value)  # 16 and 32 bits a pixel: stretched below, where PIL would clip
    pixels = _pixels(_array(value))
    if pixels is None:
        return None
    return _encoded(require("PIL.Image").fromarray(pixels))


def _pixels(array: np.ndarray[Any, Any] | None) -> np.ndarray[Any, Any] | None:
    """uint8 of shape (H, W) or (H, W, 3) from an array of the shape of a picture; ``None`` for another."""
    if array is None or array.ndim not in (2, 3) or min(array.shape) == 0:
        return None
    if array.ndim == 3:
        # Where the first and the last dimension can both be channels, e.g. (3, H, 3), the last one is taken.
        if array.shape[0] in (1, 3) and array.shape[2] not in (1, 3):
            array = np.moveaxis(array, 0, -1)
        if array.shape[2] not in (1, 3):
            return None
        array = array[..., 0] if array.shape[2] == 1 else array
    if min(array.shape[:2]) < 2:
        return None
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    values = np.nan_to_num(array.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 1:
        values = (values - low) / (high - low) if high > low else np.zeros_like(values)
    return np.ascontiguousarray((values * 255).round().astype(np.uint8))


def _encoded(image: Any) -> Shown:
    crisp = max(image.size) < CRISP_BELOW
    if max(image.size) > LARGEST_SIDE:
        image = image.copy()
        image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return Shown("picture", "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii"), crisp)


def _array(value: Any) -> np.ndarray[Any, Any] | None:
    if isinstance(value, Tensor):
        tensor = value.detach().cpu()
        value = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    elif isinstance(value, (list, tuple)) and _is_numbers(value):
        value = np.asarray(value)
    if isinstance(value, np.ndarray) and (np.issubdtype(value.dtype, np.number) or value.dtype == np.bool_):
        return value if not np.iscomplexobj(value) else None
    return None


def _is_numbers(value: Sequence[Any]) -> bool:
    return bool(value) and all(isinstance(x, (int, float, np.number)) for x in value)


def _brief(value: Any) -> str:
    """A value in a cell: numbers with four digits, the rest as a shortened ``repr``."""
    if isinstance(value, Tensor) and value.ndim == 0:
        value = value.item()
    if isinstance(value, (bool, np.bool_)):
        return str(bool(value))
    if isinstance(value, (float, np.floating)):
        return f"{float(value):.4g}".replace("-", "\u2212")
    if isinstance(value, (int, np.integer)):
        return str(int(value)).replace("-", "\u2212")
    if isinstance(value, str):
        return value if len(value) <= 80 else value[:79] + "\u2026"
    if isinstance(value, (Tensor, np.ndarray)):
        return f"{type(value).__name__.lower()} of shape {tuple(value.shape)}"
    brief = reprlib.Repr()
    brief.maxstring = brief.maxother = 160
    return brief.repr(value)


def _shortened(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 1] + "\u2026"
