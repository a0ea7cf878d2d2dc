"""Algebra on vectors of parameter space: ``dict[str, Tensor]``, never flattened."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from diffin.errors import DiffinError

Vector = dict[str, Tensor]
"""A vector in parameter space, by parameter name."""


def dot(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Inner product, accumulated in float64 over tensors."""
    return sum(float(torch.dot(a[name].flatten(), b[name].flatten())) for name in a)


def norm(a: Mapping[str, Tensor]) -> float:
    """Euclidean norm."""
    return float(sum(float(t.norm()) ** 2 for t in a.values()) ** 0.5)


def zeros_like(a: Mapping[str, Tensor]) -> Vector:
    return {name: torch.zeros_like(t) for name, t in a.items()}


def scale(a: Mapping[str, Tensor], factor: float | Mapping[str, float]) -> Vector:
    """``factor * a``; a mapping gives each parameter a factor of its own (per-group learning rates)."""
    if isinstance(factor, Mapping):
        return {name: t * factor[name] for name, t in a.items()}
    return {name: t * factor for name, t in a.items()}


def add(a: Mapping[str, Tensor], b: Mapping[str, Tensor], factor: float = 1.0) -> Vector:
    """``a + factor * b``."""
    return {name: torch.add(t, b[name], alpha=factor) for name, t in a.items()}


def accumulate(total: Vector, b: Mapping[str, Tensor], factor: float = 1.0) -> None:
    """``total += factor * b``, in place."""
    for name, t in total.items():
        t.add_(b[name], alpha=factor)


def to(a: Mapping[str, Tensor], device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Vector:
    return {name: t.to(device=device, dtype=dtype) for name, t in a.items()}


def detach(a: Mapping[str, Tensor]) -> Vector:
    return {name: t.detach() for name, t in a.items()}


def is_finite(a: Mapping[str, Tensor]) -> bool:
    return all(bool(torch.isfinite(t).all()) for t in a.values())


def size(a: Mapping[str, Tensor]) -> int:
    """The number of scalars."""
    return sum(t.numel() for t in a.values())


def matching(names: Iterable[str], patterns: Sequence[str] | str | None) -> list[str]:
    """Names that match any of the shell-style ``patterns``, in their own order; all of them for ``None``.

    Raises:
        DiffinError: a pattern matches no name.
    """
    names = list(names)
    if patterns is None:
        return names
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise DiffinError(
                f"parameters={patterns!r}: {pattern!r} matches no trainable parameter of the model; "
                f"names look like {', '.join(names[:3])!s}; shell wildcards are allowed, e.g. 'classifier.*'"
            )
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
