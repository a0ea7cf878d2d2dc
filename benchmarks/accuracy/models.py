"""The networks of the accuracy benchmarks. Needs PyTorch only: the other libraries build them too, in their own environment.

A network is named by a string, so that a file can carry it from one environment to the other.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

VOCABULARY = 1000
"""Word numbers of the transformer; 0 is padding."""

_ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU}
_NORMS = ("plain", "group", "batch")


def build(architecture: str) -> nn.Module:
    """`logistic`, `mlp-{relu,gelu}`, `transformer` or `cnn-{plain,group,batch}-{relu,gelu}`, freshly drawn."""
    family, *options = architecture.split("-")
    match family, options:
        case "logistic", []:
            return nn.Sequential(nn.Linear(64, 10))  # kronfluence cannot wrap a model that is one layer
        case "mlp", [activation] if activation in _ACTIVATIONS:
            return nn.Sequential(nn.Linear(64, 32), _ACTIVATIONS[activation](), nn.Linear(32, 10))
        case "cnn", [norm, activation] if norm in _NORMS and activation in _ACTIVATIONS:
            return cnn(norm, _ACTIVATIONS[activation])
        case "transformer", []:
            return Transformer()
        case _:
            raise ValueError(f"no network is called {architecture!r}")


def cnn(norm: str, activation: type[nn.Module]) -> nn.Sequential:
    """Two convolutions and a linear layer for 14 x 14 pictures of ten classes. Normalisations take the place of biases."""

    def normalisation(channels: int) -> list[nn.Module]:
        layers: dict[str, list[nn.Module]] = {
            "plain": [],
            "group": [nn.GroupNorm(4, channels)],
            "batch": [nn.BatchNorm2d(channels)],
        }
        return layers[norm]

    bias = norm == "plain"
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=bias),
        *normalisation(8),
        activation(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=bias),
        *normalisation(16),
        activation(),
        nn.Flatten(),
        nn.Linear(16 * 7 * 7, 10),
    )


class Transformer(nn.Module):
    """A pre-norm transformer over words, with the mean of the words at the end. Attention is written out, so that it can
    be differentiated more than once and in every mode.
    """

    def __init__(self, *, width: int = 32, heads: int = 2, layers: int = 1, length: int = 64, classes: int = 2) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, width)
        self.places = nn.Embedding(length, width)
        nn.init.normal_(self.words.weight, std=0.1)
        nn.init.normal_(self.places.weight, std=0.02)
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, words: Tensor) -> Tensor:
        """Logits Float[Tensor, "B classes"] of word numbers Int64[Tensor, "B length"]."""
        present = words != 0
        states = self.words(words) + self.places(torch.arange(words.shape[-1], device=words.device))
        for block in self.blocks:
            states = block(states, present)
        weights = present.to(states.dtype).unsqueeze(-1)
        return self.head((self.norm(states) * weights).sum(dim=-2) / weights.sum(dim=-2).clamp(min=1))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.query, self.key, self.value, self.mix = (nn.Linear(width, width) for _ in range(4))
        self.feed_norm = nn.LayerNorm(width)
        self.feed = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, states: Tensor, present: Tensor) -> Tensor:
        states = states + self._attention(self.attention_norm(states), present)
        return states + self.feed(self.feed_norm(states))

    def _attention(self, states: Tensor, present: Tensor) -> Tensor:
        def split(projected: Tensor) -> Tensor:  # B L D -> B heads L D/heads
            return projected.unflatten(-1, (self.heads, -1)).transpose(-2, -3)

        query, key, value = split(self.query(states)), split(self.key(states)), split(self.value(states))
        affinity = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        # A large number and not infinity: a row of padding alone would become NaN.
        affinity = affinity.masked_fill(~present[..., None, None, :], -1e9)
        return self.mix((affinity.softmax(dim=-1) @ value).transpose(-2, -3).flatten(-2))
