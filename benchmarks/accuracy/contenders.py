"""Who is compared: the estimators of diffin, and what is asked of the other libraries."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import diffin
from cases import Case
from diffin.estimators import Estimator

Settings = dict[str, Any]

DAMPINGS = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)

FIXED: dict[str, Settings] = {
    "InverseHessian": {"damping": 1e-2},
    "dattri TracIn": {"cosine": False},
    "kronfluence EK-FAC": {"damping": None},
}
"""The setting that stands for a grid where the truth is not known: what the library does unless told otherwise."""


@dataclass(frozen=True)
class Contender:
    """An estimator in one setting.

    Attributes:
        name: rows of the tables; a name with several settings is a grid.
        runs: over how many trainings, which differ in the order of the data, its scores are averaged.
        singles: whether it is asked about single query samples, too.
    """

    name: str
    estimator: Estimator
    runs: int = 1
    settings: Settings = field(default_factory=dict)
    singles: bool = False


OURS = (
    Contender("TracIn", diffin.TracIn(), singles=True),
    Contender("MoSo", diffin.MoSo()),
    Contender("DiffIn (Eq. 9)", diffin.DiffIn(), singles=True),
    *(
        Contender(
            "InverseHessian",
            diffin.InverseHessian(damping=damping),
            settings={"damping": damping},
            singles=damping == FIXED["InverseHessian"]["damping"],
        )
        for damping in DAMPINGS
    ),
    Contender("Unrolled, segments", diffin.Unrolled(propagation="segments"), singles=True),
    Contender("Unrolled, steps", diffin.Unrolled(propagation="steps")),
    Contender("Unrolled, steps, 20 states", diffin.Unrolled(propagation="steps", states=20)),
    Contender("Unrolled", diffin.Unrolled(), singles=True),
    Contender("Unrolled, mean of 3 runs", diffin.Unrolled(), runs=3),
    Contender("Unrolled, Gauss-Newton", diffin.Unrolled(hessian="gauss-newton")),
    Contender("Unrolled, Gauss-Newton, mean of 3 runs", diffin.Unrolled(hessian="gauss-newton"), runs=3),
    Contender("Replay", diffin.Replay(), singles=True),
    Contender("Replay, mean of 3 runs", diffin.Replay(), runs=3),
)

PEERS = (
    "captum TracInCP",
    "dattri TracIn",
    "dattri IF-explicit",
    "dattri IF-CG",
    "dattri Arnoldi",
    "dattri TRAK",
    "dattri DVEmb",
    "traker TRAK",
    "traker TRAK, several checkpoints",
    "kronfluence identity",
    "kronfluence EK-FAC",
)
"""As `peers.py` calls them."""

TINY = ("logistic", "mlp")
"""Families of networks that are retrained in no time."""


def peers_for(case: Case) -> tuple[str, ...]:
    """Those that finish on a case, or add anything."""
    return tuple(name for name in PEERS if not reason_against(name, case.architecture))


def reason_against(name: str, architecture: str) -> str:
    """Why a peer is not asked about a network; empty where it is."""
    family, *options = architecture.split("-")
    if name == "captum TracInCP" and (family == "transformer" or "group" in options or "batch" in options):
        return "takes the gradients of normalisations sample by sample; dattri's TracIn gives the same numbers"
    if name == "dattri IF-explicit" and family not in TINY:
        return "makes the Hessian in full"
    if name in ("dattri IF-CG", "dattri Arnoldi", "dattri DVEmb") and family == "transformer":
        return "did not finish in twenty minutes"
    return ""


def libraries(names: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Names by library. Each is asked on its own, so that what one takes down is not lost for the others."""
    found: dict[str, tuple[str, ...]] = {}
    for name in names:
        library = name.split()[0]
        found[library] = (*found.get(library, ()), name)
    return found


def said(settings: Settings) -> str:
    """For a person."""
    return ", ".join(f"{key} {value}" for key, value in settings.items())


def slug(text: str) -> str:
    """For the name of a file."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")
