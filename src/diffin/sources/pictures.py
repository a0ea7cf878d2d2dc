"""Pictures and captions, made of the bytes that are stored."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffin.errors import MissingDependencyError, UnreadableError
from diffin.sources.unreadable import reason_of

Transform = Callable[[Any], Any]

# All that Pillow is asked to know here: what it reads by itself. For others it starts a program, Ghostscript for EPS, by
# what a file holds and not by its name.
_FORMATS = ("AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF", "WEBP")


@dataclass(frozen=True)
class Pair:
    """Decodes an image with a text, out of a shard or a row of a table, as a tuple.

    Args:
        image: the kinds of member, or the columns, that an image may be in; the first that is there is taken.
        text: the same for the text.
        transform: of a ``PIL.Image`` in RGB; ``None`` for Float32[Tensor, "3 H W"] of 0 to 1.
        tokenize: of the text; ``None`` to leave it a string.
    """

    image: str | Sequence[str] = ("png", "jpg", "jpeg", "webp")
    text: str | Sequence[str] = "txt"
    transform: Transform | None = None
    tokenize: Callable[[str], Any] | None = None

    def __call__(self, stored: Mapping[str, Any]) -> tuple[Any, Any]:
        text = _first(stored, self.text)
        if not isinstance(text, str | bytes):
            raise UnreadableError(f"holds no text, but {type(text).__name__}")
        words = text if isinstance(text, str) else text.decode("utf-8")
        shown = picture(_first(stored, self.image), self.transform)
        return shown, words if self.tokenize is None else self.tokenize(words)


def picture(stored: Any, transform: Transform | None = None) -> Any:
    """An image in RGB.

    Args:
        stored: its bytes, or a mapping with them under ``"bytes"``, as Hugging Face stores images in tables.
        transform: of a ``PIL.Image``; ``None`` for Float32[Tensor, "3 H W"] of 0 to 1.

    Raises:
        UnreadableError: these are no bytes of an image, or of one so large that Pillow takes it for an attack, or of a format
            that needs another program.
        MissingDependencyError: Pillow is not installed.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise MissingDependencyError(
            'images are read with Pillow, which is not installed: run pip install "diffin[report]"'
        ) from error
    data = stored.get("bytes") if isinstance(stored, Mapping) else stored
    if not isinstance(data, bytes | bytearray | memoryview):
        raise UnreadableError(f"holds no bytes of an image, but {type(data).__name__}")
    Image.init()
    try:
        with Image.open(io.BytesIO(data), formats=[form for form in _FORMATS if form in Image.OPEN]) as opened:
            image = opened.convert("RGB")
    except (MemoryError, ImportError):
        raise
    except UnidentifiedImageError:
        raise UnreadableError(f"its {len(data):,} bytes are no image that Pillow knows") from None
    except Exception as error:  # each format has errors of its own for bytes that are not what it expects
        raise UnreadableError(f"its {len(data):,} bytes cannot be read as an image ({reason_of(error)})") from None
    return _tensor(image) if transform is None else transform(image)


def _tensor(image: Any) -> Tensor:
    values = torch.from_numpy(np.asarray(image).copy())
    return values.permute(2, 0, 1).contiguous().float() / 255


def _first(stored: Mapping[str, Any], names: str | Sequence[str]) -> Any:
    wanted = (names,) if isinstance(names, str) else tuple(names)
    there = [name for name, what in stored.items() if what is not None]
    for name in wanted:
        if name in there:
            return stored[name]
    raise UnreadableError(f"has no {' or '.join(wanted)}, only {', '.join(map(str, there)) or 'nothing'}")
