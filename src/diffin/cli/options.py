"""Arguments and options that commands share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import diffin
from diffin.errors import DiffinError
from diffin.progress import silenced

ProblemFile = Annotated[
    Path,
    typer.Argument(metavar="PROBLEM", help="Python file with `def problem() -> diffin.Problem` (task, train, query)."),
]
RunFolder = Annotated[
    Path,
    typer.Argument(metavar="RUN", help="Folder that a diffin.Recorder wrote, or a Trainer's folder of checkpoints."),
]
RunFolders = Annotated[
    list[Path],
    typer.Argument(
        metavar="RUN...",
        help="Folder that a diffin.Recorder wrote, or a Trainer's folder of checkpoints; several of the same model and data "
        "are averaged.",
    ),
]
Parameters = Annotated[
    list[str] | None,
    typer.Option(
        "--parameters", "-p", help="Study only parameters whose name matches, e.g. 'head.*'. May be repeated."
    ),
]
EstimatorName = Annotated[
    Literal["auto", "unrolled", "replay", "diffin", "tracin", "moso", "inverse-hessian"],
    typer.Option(
        "--estimator",
        "-e",
        help="unrolled: through the whole training, what to expect of a sample; replay: the exact influence on this run; "
        "diffin: Eq. 9 of the paper; tracin: first order; moso: on the training risk; inverse-hessian: the influence "
        "function; auto: unrolled, where the optimizer is known.",
    ),
]


def settings_option(said: str) -> Any:
    """``--set NAME=VALUE``, for a command that has its own to say about it."""
    return typer.Option("--set", metavar="NAME=VALUE", help=f"{said} May be repeated.")


Settings = Annotated[
    list[str] | None,
    settings_option(
        "A setting of the estimator, e.g. -e unrolled --set propagation=segments --set rank=20, -e diffin --set "
        "batch_size=none, -e inverse-hessian --set damping=0.1."
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of the draws of the estimator.")]


def _silence(context: typer.Context, quiet: bool) -> bool:
    if quiet:
        context.with_resource(silenced())
    return quiet


Quiet = Annotated[bool, typer.Option("--quiet", "-q", callback=_silence, help="No progress bars.")]


ESTIMATORS: dict[str, type[diffin.Estimator]] = {
    "unrolled": diffin.Unrolled,
    "replay": diffin.Replay,
    "diffin": diffin.DiffIn,
    "tracin": diffin.TracIn,
    "moso": diffin.MoSo,
    "inverse-hessian": diffin.InverseHessian,
}


def trained(asked: diffin.Problem | None, folder: Path) -> diffin.Trajectory:
    """The run in a folder; the model of the problem tells apart what the folder of another trainer leaves open."""
    return diffin.Trajectory.open(folder, model=None if asked is None else asked.task.model)


def make_estimator(name: str, settings: Sequence[str] | None, seed: int) -> diffin.Estimator | None:
    """The estimator of that name, with settings as ``NAME=VALUE``; ``None`` for ``"auto"``.

    Raises:
        DiffinError: it has no such setting, or the value makes no sense.
    """
    if name == "auto":
        if settings:
            raise DiffinError(f"--set {settings[0]}: say of which estimator, e.g. --estimator unrolled")
        return None
    kind = ESTIMATORS[name]
    known = {field.name: field for field in fields(kind)}
    values: dict[str, Any] = {"seed": seed} if "seed" in known else {}
    for setting in settings or ():
        key, found, text = setting.partition("=")
        if not found or key not in known:
            named = ", ".join(f"{field.name}={str(field.default).lower()}" for field in known.values())
            raise DiffinError(f"--set {setting}: the settings of {name} are {named or 'none'}")
        values[key] = _parsed(setting, text, known[key])
    return kind(**values)


def _parsed(setting: str, text: str, field: Field[Any]) -> object:
    """A value of the kind that the default is of: a number, a word, or ``none`` where that means something."""
    if isinstance(field.default, str):
        return text
    may_be_none = "None" in str(field.type)
    if may_be_none and text.lower() == "none":
        return None
    try:
        return float(text) if isinstance(field.default, float) else int(text)
    except ValueError:
        wanted = "a number" if isinstance(field.default, float) else "a whole number"
        raise DiffinError(f"--set {setting}: pass {wanted}{', or none' if may_be_none else ''}") from None


def whole(option: str, text: str) -> int:
    """A number given as text, because the option also takes a word."""
    try:
        return int(text)
    except ValueError:
        raise DiffinError(f"{option} {text}: pass a whole number, or 'auto' or 'all' where the help says so") from None
