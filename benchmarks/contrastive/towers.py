"""Models for the throughput benchmark, with random weights: CLIPs of Hugging Face, and one small enough for a test."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from diffin.tasks.contrastive import TwoTowers

_DISTINCT = 256


@dataclass(frozen=True)
class Shape:
    """Sizes of a CLIP of two transformers.

    Attributes:
        side: of a picture, in pixels.
        patch: side of a patch.
        tokens: of a text.
        words: that there are.
        vision: width, layers and heads of the tower for pictures.
        text: the same of the tower for texts.
        features: width of what both make of a pair.
    """

    side: int
    patch: int
    tokens: int
    words: int
    vision: tuple[int, int, int]
    text: tuple[int, int, int]
    features: int


SHAPES = {
    "vit-b-32": Shape(224, 32, 77, 49_408, (768, 12, 12), (512, 12, 8), 512),
    "small": Shape(64, 8, 32, 8_192, (256, 6, 4), (256, 4, 4), 256),
    "tiny": Shape(16, 8, 8, 64, (16, 1, 1), (16, 1, 1), 8),
}
"""The first is ViT-B/32 with the text tower of CLIP; the last is not of transformers."""


def build(name: str) -> nn.Module:
    """The model, always the same."""
    torch.manual_seed(0)
    shape = SHAPES[name]
    return _tiny(shape) if name == "tiny" else _clip(shape)


def _clip(shape: Shape) -> nn.Module:
    from transformers import CLIPConfig, CLIPModel

    sizes = [
        {
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
        }
        for width, layers, heads in (shape.vision, shape.text)
    ]
    end = {"vocab_size": shape.words, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": shape.words - 1}
    config = CLIPConfig(
        vision_config={**sizes[0], "image_size": shape.side, "patch_size": shape.patch},
        text_config={**sizes[1], **end, "max_position_embeddings": shape.tokens},
        projection_dim=shape.features,
    )
    model: nn.Module = CLIPModel(config)
    return model


def _tiny(shape: Shape) -> TwoTowers:
    (seen, *_), (read, *_) = shape.vision, shape.text
    patches = (shape.side // shape.patch) ** 2
    return TwoTowers(
        nn.Sequential(
            nn.Conv2d(3, seen, shape.patch, stride=shape.patch), nn.GELU(), nn.Flatten(),
            nn.Linear(seen * patches, shape.features),
        ),
        nn.Sequential(
            nn.Embedding(shape.words, read), nn.Linear(read, read), nn.GELU(), nn.Flatten(),
            nn.Linear(read * shape.tokens, shape.features),
        ),
    )  # fmt: skip


class RandomPairs(Dataset[tuple[Tensor, Tensor]]):
    """Noise and random words, of the shape that a model takes: what a pair shows changes nothing of what it costs.

    Args:
        name: of the model.
        length: how many; the first 256 are distinct, and come again.
        seed: which.
    """

    def __init__(self, name: str, length: int, seed: int = 0) -> None:
        shape, distinct = SHAPES[name], min(length, _DISTINCT)
        generator = torch.Generator().manual_seed(seed)
        self._length = length
        self._images = torch.randn(distinct, 3, shape.side, shape.side, generator=generator)
        self._texts = torch.randint(2, shape.words - 1, (distinct, shape.tokens), generator=generator)
        self._texts[:, -1] = shape.words - 1  # the end of a text, whose features are taken

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not 0 <= index < self._length:
            raise IndexError(index)
        place = index % len(self._images)
        return self._images[place], self._texts[place]
