"""The network of the benchmarks. Needs PyTorch only: the other libraries run on it from an environment of their own."""

from __future__ import annotations

from torch import nn

NETWORKS = {
    "smooth": (nn.GELU, nn.AvgPool2d),
    "kinked": (nn.ReLU, nn.MaxPool2d),
}
"""Activation and pooling: twice differentiable, or piecewise linear."""


def cnn(kind: str = "smooth") -> nn.Sequential:
    """Two convolutions and two linear layers for 28 x 28 pictures of ten classes: 105,866 parameters."""
    activation, pooling = NETWORKS[kind]
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        activation(),
        pooling(2),
        nn.Conv2d(16, 32, 3, padding=1),
        activation(),
        pooling(2),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 64),
        activation(),
        nn.Linear(64, 10),
    )
