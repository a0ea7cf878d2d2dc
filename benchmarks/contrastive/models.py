"""A small CLIP: a convolutional tower for pictures, and one for words, which does not see in what order they come."""

from __future__ import annotations

import re
from collections.abc import Iterable
from zlib import crc32

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from diffin.tasks.contrastive import TwoTowers

WIDTH = 128
"""Of what the two towers make of a pair."""

TOKENS = 24
"""The most that is read of a caption."""

SCALE = 7.0
"""What similarities are multiplied with, the inverse of the temperature."""

_BUCKETS = 4_096
_STEM = 5
_WORD = re.compile(r"[^\W\d_]+|\d+")


def tokens(captions: Iterable[str]) -> npt.NDArray[np.int64]:
    """Int64[ndarray, "N 24"]: words, and of longer ones their beginnings, by number; 0 where there are no more."""
    rows = []
    for caption in captions:
        words = dict.fromkeys(_WORD.findall(caption.lower()))
        pieces = [piece for word in words for piece in ([word, word[:_STEM] + "-"] if len(word) > 3 else [word])]
        numbers = list(dict.fromkeys(1 + crc32(piece.encode()) % (_BUCKETS - 1) for piece in pieces))[:TOKENS]
        rows.append(numbers + [0] * (TOKENS - len(numbers)))
    return np.array(rows, dtype=np.int64)


class Pictures(nn.Module):
    """UInt8[Tensor, "B 3 64 64"] to Float[Tensor, "B 128"]."""

    def __init__(self, first: int = 48, second: int = 96) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, first, 8, stride=8), nn.GroupNorm(4, first), nn.GELU(),
            nn.Conv2d(first, second, 3, stride=2, padding=1), nn.GroupNorm(4, second), nn.GELU(),
            nn.Flatten(), nn.Linear(second * 16, WIDTH),
        )  # fmt: skip

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.layers(pixels.to(self.layers[0].weight.dtype) / 127.5 - 1)
        return features


class Words(nn.Module):
    """Int64[Tensor, "B 24"] to Float[Tensor, "B 128"]."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.table = nn.Embedding(_BUCKETS, width)
        self.layers = nn.Sequential(nn.Linear(width, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))
        nn.init.normal_(self.table.weight, std=0.5)

    def forward(self, numbers: Tensor) -> Tensor:
        there = (numbers > 0).to(self.table.weight.dtype).unsqueeze(-1)
        mean = (self.table(numbers) * there).sum(dim=1) / there.sum(dim=1).clamp_min(1).sqrt()
        features: Tensor = self.layers(mean)
        return features


def clip() -> TwoTowers:
    """Both towers, and a temperature that stays as it is.

    A temperature that is learned ends where what was trained on is told apart, at three times that scale: no better at
    retrieval, and so sure of itself that the loss of a query is above that of guessing. What lowers such a loss is doubt, and
    not knowledge; and influence is on the loss.
    """
    model = TwoTowers(Pictures(), Words(), scale=SCALE)
    model.logit_scale.requires_grad_(False)
    return model
