"""Algebra on vectors of parameter space: ``dict[str, Tensor]``, never flattened."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from diffin.errors import DiffinError

Vector = dict[str, Tensor]
"""A vector in parameter space, by parameter name."""


def norm(a: Mapping[str, Tensor]) -> float:
    """Euclidean norm."""
    # The norm of the norms: squares of what is small in float32 would vanish.
    return float(torch.linalg.vector_norm(torch.tensor([_norm(t) for t in a.values()], dtype=torch.float64)))


def _norm(t: Tensor) -> float:
    largest = float(t.abs().max()) if t.numel() else 0.0
    return largest * float((t / largest).norm()) if largest else 0.0


def dot(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """The inner product, summed in float64 over parameters."""
    return sum(float((t * b[name]).sum(dtype=torch.promote_types(t.dtype, torch.float32))) for name, t in a.items())


def multiply(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Vector:
    """``a * b``, entry by entry."""
    return {name: t * b[name] for name, t in a.items()}


def zeros_like(a: Mapping[str, Tensor]) -> Vector:
    """Zeros to accumulate into: half precision would lose what is added, so they are float32 at least."""
    return {name: torch.zeros_like(t, dtype=torch.promote_types(t.dtype, torch.float32)) for name, t in a.items()}


def like(a: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> Vector:
    """The entries of ``a`` that ``reference`` has, on its device and in its precision."""
    return {name: a[name].to(t) for name, t in reference.items()}


def scale(a: Mapping[str, Tensor], factor: float | Mapping[str, float]) -> Vector:
    """``factor * a``; a mapping gives each parameter a factor of its own (per-group learning rates)."""
    if isinstance(factor, Mapping):
        return {name: t * factor[name] for name, t in a.items()}
    return {name: t * factor for name, t in a.items()}


def add(a: Mapping[str, Tensor], b: Mapping[str, Tensor], factor: float = 1.0) -> Vector:
    """``a + factor * b``."""
    return {name: torch.add(t, b[name], alpha=factor) for name, t in a.items()}


def is_finite(a: Mapping[str, Tensor]) -> bool:
    return all(bool(torch.isfinite(t).all()) for t in a.values())


def matching(names: Iterable[str], patterns: Sequence[str] | str | None) -> list[str]:
    """Names that match any of the shell-style ``patterns``, in their own order; all of them for ``None``.

    Raises:
        DiffinError: a pattern matches no name.
    """
    names = list(names)
    if patterns is None:
        return names
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    if not patterns:
        raise DiffinError("parameters=[] studies nothing; pass name patterns, or None for all parameters")
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise DiffinError(
                f"parameters={patterns!r}: {pattern!r} matches no trainable parameter of the model; "
                f"names look like {', '.join(names[:3])!s}; shell wildcards are allowed, e.g. 'classifier.*'"
            )
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
