"""The options that say who measures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from diffin.cli.terminal import console
from diffin.errors import DiffinError
from diffin.scoring import Local, Ray, Scores, ScoringEngine, Torchrun
from diffin.scoring.columns import NOT_FINITE
from diffin.scoring.engines.torchrun import use_own_device

UNREAD = 3
"""The exit code where some samples could not be read."""

EngineName = Annotated[
    Literal["local", "torchrun", "ray"],
    typer.Option(
        "--engine",
        help="Who measures: this process; all those of `torchrun --nproc_per_node=4 -m diffin score ... --engine torchrun`; "
        "or a Ray cluster. The same probes give the same scores, to the byte; torchrun builds them with another rounding.",
    ),
]
RaySettings = Annotated[
    list[str] | None,
    typer.Option(
        "--ray",
        metavar="NAME=VALUE",
        help="A setting of --engine ray: workers=8, gpus_per_worker=1, cpus_per_worker=4, address=auto. May be repeated.",
    ),
]


def make_engine(name: str, settings: Sequence[str] | None, problem: Path) -> ScoringEngine:
    """The engine of that name, with settings as ``NAME=VALUE``.

    To be called before the problem is loaded: under ``torchrun`` it makes the GPU of this process the one that models are
    moved to.

    Raises:
        DiffinError: it has no such setting, or the value makes no sense.
    """
    if settings and name != "ray":
        raise DiffinError(f"--ray {settings[0]}: pass --engine ray, too")
    if name == "local":
        return Local()
    if name == "torchrun":
        use_own_device()
        return Torchrun()
    known = {field.name: field for field in fields(Ray) if field.name != "problem"}
    values: dict[str, Any] = {}
    for setting in settings or ():
        key, found, text = setting.partition("=")
        if not found or key not in known:
            raise DiffinError(f"--ray {setting}: the settings are {', '.join(known)}")
        values[key] = _parsed(setting, text, known[key])
    return Ray(**values, problem=problem)


def _parsed(setting: str, text: str, field: Field[Any]) -> object:
    if field.name == "address":
        return text
    try:
        return int(text) if field.name == "workers" else float(text)
    except ValueError:
        raise DiffinError(f"--ray {setting}: pass a {'whole ' if field.name == 'workers' else ''}number") from None


def report_unread(scores: Scores, output: Path) -> int:
    """Say how many samples could not be read, and where it says why. Returns how many."""
    if not scores.metadata["failed_count"] or scores.keys is None:
        return 0
    reasons = {index: reason for index, reason in scores.failures.items() if reason != NOT_FINITE}
    if reasons:
        first = next(iter(reasons))
        console.print(
            f"{len(reasons):,} samples could not be read, and have no influence (sample {first}: {reasons[first]}). Column "
            f"`failure` of {output}/part-*.parquet says why of each, as does diffin.Scores.open(...).failures.",
            soft_wrap=True,
            markup=False,
        )
    return len(reasons)
