"""Seeing that somebody else clips the gradients.

A clipped gradient has the same norm step after step although the gradient itself changes. So the norms of a few
looked-at steps are kept, and three that agree are taken as clipping, provided that the gradients were written to after
the backward pass: a model whose gradients happen to have a constant norm (a linear loss of normalised inputs) is left
alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

FIRST_STEPS = 10
"""How many steps at the start of a recording are looked at."""

_SAME = 1e-5
_DIFFERENT = 1e-3
_ORDERS = (1.0, 2.0, float("inf"))
_REMEMBERED = 64


@dataclass(frozen=True)
class _Look:
    norms: tuple[float, ...]


class ClippingWatch:
    """Looks at gradients as an optimizer is about to use them.

    Args:
        optimizer: whose gradients. The first of its trainable parameters gets a hook, until :meth:`close`.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._looks: list[_Look] = []
        self._watched: nn.Parameter | None = next(
            (p for group in optimizer.param_groups for p in group["params"] if p.requires_grad), None
        )
        self._left_by_backward: tuple[int, int] | None = None
        self._handle = None
        if self._watched is not None:
            self._handle = self._watched.register_post_accumulate_grad_hook(self._after_backward)

    def close(self) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def look(self) -> str | None:
        """Look at the gradients now. Returns what was found, as a clause, or ``None``."""
        gradients = [p.grad for p in _parameters(self._optimizer) if p.grad is not None]
        if not gradients or not self._written_to() or any(g.layout != torch.strided for g in gradients):
            return None
        norms = tuple(_norm(gradients, order) for order in _ORDERS)
        if not all(0 < norm < float("inf") for norm in norms):
            return None
        self._looks = [*self._looks[1 - _REMEMBERED :], _Look(norms)]
        for position, order in enumerate(_ORDERS):
            if self._count_clipped(position) >= 3:
                name = {1.0: "L1 norm", 2.0: "norm", float("inf"): "largest entry"}[order]
                return (
                    f"the {name} of the gradients is {norms[position]:.6g} at three steps, though the gradients differ"
                )
        return None

    def _count_clipped(self, position: int) -> int:
        """How many looks share this norm with the last one, while differing pairwise in another."""
        last = self._looks[-1]
        alike = [last]
        for look in reversed(self._looks[:-1]):
            if _close(look.norms[position], last.norms[position], _SAME) and all(
                _differ(look, other) for other in alike
            ):
                alike.append(look)
        return len(alike)

    def _after_backward(self, parameter: Tensor) -> None:
        gradient = parameter.grad
        # The version counts in-place writes; clip_grad_norm_ always makes one, even when it scales by one.
        self._left_by_backward = None if gradient is None else (id(gradient), gradient._version)

    def _written_to(self) -> bool:
        """Whether the gradients were written to since the backward pass; assumed where no backward pass was seen."""
        gradient = None if self._watched is None else self._watched.grad
        if gradient is None or self._left_by_backward is None:
            return True
        return self._left_by_backward != (id(gradient), gradient._version)


def clip(optimizer: Optimizer, max_norm: float, norm_type: float) -> tuple[Tensor, Tensor]:
    """Clip the gradients of an optimizer to a norm.

    Returns:
        The norm before, and the factor that was applied (at most 1), both on the gradients' device.
    """
    norm = torch.nn.utils.clip_grad_norm_(list(_parameters(optimizer)), max_norm, norm_type)
    return norm, coefficient(norm, max_norm)


def coefficient(norm: Tensor, max_norm: float) -> Tensor:
    """What gradients of that norm are multiplied by, at most 1."""
    # The same expression as in clip_grad_norm_, which does not return it.
    return torch.clamp(max_norm / (norm.detach() + 1e-6), max=1.0)


def _parameters(optimizer: Optimizer) -> Iterator[nn.Parameter]:
    return (p for group in optimizer.param_groups for p in group["params"])


def _norm(gradients: Sequence[Tensor], order: float) -> float:
    with torch.no_grad():
        norms = [
            torch.linalg.vector_norm(g, order, dtype=torch.promote_types(g.dtype, torch.float32)).cpu()
            for g in gradients
        ]
        return float(torch.linalg.vector_norm(torch.stack([norm.double() for norm in norms]), order))


def _close(a: float, b: float, tolerance: float) -> bool:
    return abs(a - b) <= tolerance * max(a, b)


def _differ(a: _Look, b: _Look) -> bool:
    return any(not _close(x, y, _DIFFERENT) for x, y in zip(a.norms, b.norms, strict=True))
