"""The ways to select, by name, and what each of them goes by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from diffin.actions.select import rules
from diffin.actions.select.evidence import Evidence
from diffin.actions.select.shares import Rule, random_rule
from diffin.errors import DiffinError
from diffin.scoring.columns import Floats

Method = Literal[
    "iterated",
    "random",
    "influence",
    "moso",
    "self-influence",
    "stratified",
    "diverse",
    "ccs",
    "moderate",
    "k-center",
    "el2n",
    "grand",
    "forgetting",
    "aum",
]

METHODS: tuple[Method, ...] = get_args(Method)

HAVE_A_CUT = ("stratified", "ccs")
NEED_QUERY = ("influence", "stratified", "diverse")
NEED_TRAINING = tuple(name for name in METHODS if name not in ("iterated", "random"))


@dataclass(frozen=True)
class Wanted:
    """What a rule shall do.

    Attributes:
        fraction: share to keep.
        seed: of what is drawn.
        cut: share of hardest samples that ``"stratified"`` and ``"ccs"`` drop first; ``None`` for
            :func:`diffin.actions.select.rules.usual_cut`.
    """

    fraction: float
    seed: int
    cut: float | None = None

    def stratified(self, difficulty: Floats) -> Rule:
        cut = rules.usual_cut(self.fraction) if self.cut is None else self.cut
        return rules.stratified(difficulty, cut, self.seed)


_MakeRule = Callable[[Evidence, Wanted], Rule]

_RULES: dict[Method, _MakeRule] = {
    "random": lambda _, wanted: random_rule(wanted.seed),
    # Negative helps, so the lowest influence is the first to keep.
    "influence": lambda known, wanted: rules.highest(-known.influence),
    "moso": lambda known, wanted: rules.highest(-known.moso),
    "self-influence": lambda known, wanted: rules.highest(-known.self_influence),
    "stratified": lambda known, wanted: wanted.stratified(known.influence),
    "diverse": lambda known, wanted: rules.diverse(-known.influence, known.features),
    "ccs": lambda known, wanted: wanted.stratified(-known.signals.area_under_margin),
    "moderate": lambda known, wanted: rules.moderate(known.features, known.signals.labels),
    "k-center": lambda known, wanted: rules.k_center(known.features, wanted.seed),
    "el2n": lambda known, wanted: rules.highest(known.el2n),
    "grand": lambda known, wanted: rules.highest(known.gradient_norm),
    "forgetting": lambda known, wanted: rules.highest(known.signals.forgetting.astype(np.float64)),
    "aum": lambda known, wanted: rules.highest(-known.signals.area_under_margin),
}


def rule_of(method: Method, known: Evidence, wanted: Wanted) -> Rule:
    """The rule of a method other than ``"iterated"``."""
    return _RULES[method](known, wanted)


def check_method(method: str) -> Method:
    """The method of that name.

    Raises:
        DiffinError: there is none.
    """
    for known in METHODS:
        if known == method:
            return known
    raise DiffinError(f"method={method!r}: pass one of {', '.join(METHODS)}")
