"""Which parameters hooks account for: found once, by comparing with the true gradients of two samples.

A sample whose loss has no gradient (a margin that is kept, a truncated loss) agrees with everything and says nothing, so that
the two are looked for among those that have one. The same holds for a layer that neither of them reaches, as an expert that
other samples are sent to: what hooks see of it later is not relied on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from diffin import vectors
from diffin.batches import Batch, select
from diffin.derivatives.gradient import gradient_of
from diffin.errors import TaskError
from diffin.memory import is_out_of_memory
from diffin.task import PerSampleLoss
from diffin.vectors import Vector

Layers = Sequence[tuple[nn.Module, dict[str, str]]]
"""Modules, each with {its own parameter's name: the model's name}."""

Kept = TypeVar("Kept")

_TRIES = 8
_MISFITS = (RuntimeError, ValueError, TypeError, IndexError, TaskError)
"""What a model raises that a tensor of another shape does not suit."""


@dataclass(frozen=True)
class Examples(Generic[Kept]):
    """Samples to compare by, at most two.

    Attributes:
        together: a batch of them.
        alone: a batch of each.
        kept: what was kept of the gradient of each.
        telling: how many of the gradients are finite and not zero.
        reached: the parameters with a gradient that is not zero for one of them.
    """

    together: Batch
    alone: list[Batch]
    kept: list[Kept]
    telling: int
    reached: set[str]


def examples(loss: PerSampleLoss, point: Vector, batch: Batch, keep: Callable[[Vector], Kept]) -> Examples[Kept]:
    """Those of the largest finite losses, of which two have a gradient that is finite and not zero if so many are found.

    Args:
        loss: the losses as a function of the studied parameters.
        point: where.
        batch: to choose from.
        keep: what to keep of a gradient, which is as large as the parameters.
    """
    with torch.no_grad():
        losses = loss(point, batch)
    order = losses.argsort(descending=True, stable=True)
    telling: list[tuple[int, Kept]] = []
    others: list[tuple[int, Kept]] = []
    reached: set[str] = set()
    for row in order[torch.isfinite(losses[order])][:_TRIES].tolist():
        found = gradient_of(loss, point, select(batch, slice(row, row + 1)), list(point))
        says = 0 < vectors.norm(found) < float("inf")
        if says:
            telling.append((row, keep(found)))
            reached |= {name for name, g in found.items() if bool(g.any())}
        elif len(others) < 2:
            others.append((row, keep(found)))
        if len(telling) == 2:
            break
    chosen = (telling + others)[:2]
    rows = torch.tensor([row for row, _ in chosen], dtype=torch.int64)
    alone = [select(batch, slice(row, row + 1)) for row, _ in chosen]
    return Examples(select(batch, rows), alone, [kept for _, kept in chosen], len(telling), reached)


@dataclass(frozen=True)
class Plan:
    """How to come by the gradient of every parameter.

    Attributes:
        layers: with the parameters that hooks account for.
        rest: the other parameters.
        handed: tables whose rows have to be handed to every sample for it. Positions are looked up once for all samples, and
            the rows broadcast. Handed out before, as many times as there are samples, they have a gradient for each
            (:func:`diffin.derivatives.hooks.backward`).
        trusted: the layers that an example reached.
        lasting: whether two examples speak for it, and not one or none.
    """

    layers: Layers
    rest: list[str]
    handed: frozenset[nn.Module] = frozenset()
    trusted: frozenset[nn.Module] = frozenset()
    lasting: bool = False

    def lost(self, module: nn.Module, delta: Tensor) -> bool:
        """Whether a call, with the gradient of the loss with respect to its output, is one that nothing was compared with."""
        return module not in self.trusted and bool(delta.any())

    def without(self, names: set[str]) -> Plan:
        """The same with these parameters among the rest."""
        return replace(
            self, layers=_restricted(self.layers, lambda name: name not in names), rest=[*self.rest, *sorted(names)]
        )


def planned(
    layers: Layers, of: Sequence[str], found: Examples[Any], agreeing: Callable[[Plan], tuple[set[str], set[nn.Module]]]
) -> Plan:
    """By hooks what they account for, the others without.

    Args:
        layers: of known kinds.
        of: all parameters.
        found: to compare by.
        agreeing: from a plan to try to the parameters for which hooks and true gradients agree, and the layers hooks saw.
    """
    if not found.telling:
        return Plan([], list(of))
    trial = Plan(layers, [], trusted=frozenset(module for module, _ in layers))
    known, seen = agreeing(trial)
    for module, names in layers:
        if not isinstance(module, nn.Embedding) or known.issuperset(names.values()):
            continue
        further = replace(trial, handed=trial.handed | {module})
        try:
            more, seen_then = agreeing(further)
        except _MISFITS as error:  # the model does not take the rows so
            if isinstance(error, RuntimeError) and is_out_of_memory(error):
                raise
            continue
        if more > known:
            trial, known, seen = further, more, seen_then
    return Plan(
        _restricted(layers, known.__contains__),
        [name for name in of if name not in known],
        trial.handed,
        frozenset(m for m, names in layers if m in seen and not found.reached.isdisjoint(names.values())),
        found.telling > 1,
    )


def _restricted(layers: Layers, known: Callable[[str], bool]) -> Layers:
    kept = [(module, {local: name for local, name in names.items() if known(name)}) for module, names in layers]
    return [(module, names) for module, names in kept if names]
