"""Algebra on per-sample gradients that come parameter by parameter: B rows at a time, never B x P numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor

from diffin.derivatives.base import as_float64


def times(rows: Tensor, directions: Tensor) -> Tensor:
    """Inner products of B rows with Q directions. Float64[Tensor, "B Q"]."""
    return as_float64(rows.flatten(1) @ directions.flatten(1).T)


def summed(terms: Iterable[Tensor]) -> Tensor:
    """The sum over parameters; the first term is added to in place."""
    total: Tensor | None = None
    for term in terms:
        total = term if total is None else total.add_(term)
    assert total is not None  # a loss has parameters
    return total


def pairs(
    one: Iterator[tuple[str, Tensor]], other: Iterator[tuple[str, Tensor]]
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """What two walks over the parameters say of each; they keep step unless hooks see other parameters at one point."""
    waiting: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
    for (name, a), (also, b) in zip(one, other, strict=True):
        waiting[0][name], waiting[1][also] = a, b
        del a, b
        for ready in {name, also}:
            if ready in waiting[0] and ready in waiting[1]:
                yield ready, waiting[0].pop(ready), waiting[1].pop(ready)
