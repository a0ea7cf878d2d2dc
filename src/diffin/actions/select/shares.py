"""How many samples of each class are kept, and what follows from that: random subsets, swaps, weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from diffin.errors import DiffinError
from diffin.scoring.columns import Floats
from diffin.sources import Indices

Rule = Callable[[Indices, int], Indices]
"""Chooses so many of the samples at those positions."""


def count(fraction: float, size: int) -> int:
    """How many of ``size`` samples a fraction is, at least one.

    Raises:
        DiffinError: the fraction is not in (0, 1].
    """
    if not 0 < fraction <= 1:
        raise DiffinError(f"fractions={fraction}: pass the share of the samples to keep, above 0 and at most 1")
    return max(1, round(fraction * size))


def groups(labels: Indices | None, usable: Indices) -> list[Indices]:
    """The usable positions of each class; all of them as one group where there are no labels."""
    if labels is None:
        return [usable]
    own = labels[usable]
    return [usable[own == label] for label in np.unique(own)]


def quotas(sizes: Indices, wanted: int) -> Indices:
    """Shares of ``wanted`` in proportion to ``sizes``, rounded by largest remainder, that sum to it.

    Args:
        sizes: Int64[ndarray, "C"].
        wanted: at most their sum.
    """
    exact = wanted * sizes / sizes.sum()
    result: Indices = np.floor(exact).astype(np.int64)
    short = wanted - int(result.sum())
    # A stable sort: ties go to the first class, on every machine.
    for at in np.argsort(result - exact, kind="stable")[:short]:
        result[at] += 1
    return result


def chosen(rule: Rule, labels: Indices | None, usable: Indices, wanted: int) -> Indices:
    """What a rule chooses, class by class in the proportions of the data; ascending.

    Args:
        rule: applied to each class on its own.
        labels: Int64[ndarray, "N"]; ``None`` to apply it to everything at once.
        usable: positions to choose from.
        wanted: how many.
    """
    parts = groups(labels, usable)
    shares = quotas(np.array([len(part) for part in parts]), wanted)
    return np.sort(np.concatenate([rule(part, int(n)) for part, n in zip(parts, shares, strict=True) if n]))


def random_rule(seed: int) -> Rule:
    """Chooses at random, without replacement."""
    generator = np.random.default_rng(seed)

    def rule(positions: Indices, wanted: int) -> Indices:
        return generator.choice(positions, wanted, replace=False)

    return rule


def swapped(inside: Indices, influence: Floats, labels: Indices | None, usable: Indices, share: float) -> Indices:
    """The subset with its most harmful members replaced by the most helpful samples outside.

    The k-th worst inside goes for the k-th best outside as long as that one is the more helpful, for ``share`` of each
    class at most, so that neither the size nor the proportions of the classes change.

    Args:
        inside: positions of the subset.
        influence: Float64[ndarray, "N"], negative helps; NaN for a sample that stays where it is.
        labels: Int64[ndarray, "N"]; ``None`` to swap without regard to classes.
        usable: positions to choose from.
        share: of the subset, 0 to 1.

    Returns:
        The new subset, ascending.
    """
    member = np.zeros(len(influence), dtype=bool)
    member[inside] = True
    known = np.isfinite(influence)
    for part in groups(labels, usable):
        in_ = part[member[part] & known[part]]
        out = part[~member[part] & known[part]]
        most = min(round(share * int(member[part].sum())), len(in_), len(out))
        worst = in_[np.argsort(-influence[in_], kind="stable")[:most]]
        best = out[np.argsort(influence[out], kind="stable")[:most]]
        better = influence[best] < influence[worst]
        member[worst[better]] = False
        member[best[better]] = True
    return np.flatnonzero(member).astype(np.int64)


def class_weights(subset: Indices, labels: Indices | None) -> Floats:
    """Weights of mean one that give every class the share in the subset that it has in the data.

    Float64[ndarray, "n"]; ones without labels. A class of which nothing was kept cannot be weighted up.
    """
    if labels is None:
        return np.ones(len(subset))
    kinds, of_all = np.unique(labels, return_counts=True)
    kept = np.bincount(np.searchsorted(kinds, labels[subset]), minlength=len(kinds))
    wanted = np.where(kept > 0, of_all, 0) / of_all[kept > 0].sum()
    ratio = np.divide(wanted * len(subset), kept, out=np.ones(len(kinds)), where=kept > 0)
    weights: Floats = ratio[np.searchsorted(kinds, labels[subset])]
    return weights
