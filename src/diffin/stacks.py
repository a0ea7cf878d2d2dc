"""Stacks of vectors in parameter space: ``dict[str, Tensor]``, each tensor with one more dimension in front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from diffin.vectors import Vector


def stacked(all_of_them: Sequence[Mapping[str, Tensor]]) -> Vector:
    """Q vectors as one stack, Float[Tensor, "Q *shape"]; a name that one of them lacks stands for zeros there."""
    shapes = {name: t for vector in all_of_them for name, t in vector.items()}
    return {
        name: torch.stack([vector[name] if name in vector else torch.zeros_like(like) for vector in all_of_them])
        for name, like in shapes.items()
    }


def at(stack: Mapping[str, Tensor], number: int) -> Vector:
    """One vector of a stack."""
    return {name: t[number] for name, t in stack.items()}


def unstacked(stack: Mapping[str, Tensor]) -> list[Vector]:
    """All vectors of a stack."""
    count = len(next(iter(stack.values())))
    return [at(stack, number) for number in range(count)]


def combined(weights: Tensor, stack: Mapping[str, Tensor]) -> Vector:
    """A stack of linear combinations.

    Args:
        weights: Float64[Tensor, "r q"], of the q vectors in each of r combinations.
        stack: q vectors.
    """
    return {name: torch.tensordot(weights.to(t), t, dims=1) for name, t in stack.items()}


def products(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tensor:
    """Inner products of all of a stack with all of another, summed in float64 over parameters. Float64[Tensor, "q r"]."""
    total: Tensor | None = None
    for name, t in a.items():
        part = (t.flatten(1) @ b[name].flatten(1).T).cpu().double()
        total = part if total is None else total + part
    assert total is not None  # a model without parameters was refused
    return total
