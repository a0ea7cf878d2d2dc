"""Arguments and options that commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer

import diffin
from diffin.errors import DiffinError

ProblemFile = Annotated[
    Path,
    typer.Argument(metavar="PROBLEM", help="Python file with `def problem() -> diffin.Problem` (task, train, query)."),
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Folder that a diffin.Recorder wrote.")]
RunFolders = Annotated[
    list[Path],
    typer.Argument(
        metavar="RUN...",
        help="Folder that a diffin.Recorder wrote; several of the same model and data are averaged.",
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
ProxyBatch = Annotated[str, typer.Option(help="diffin: size of the proxy batch at a checkpoint, or 'all'.")]
ProxyBatches = Annotated[int, typer.Option(help="diffin: proxy batches per checkpoint, averaged.")]
Seed = Annotated[int, typer.Option(help="Seed of the draws of the estimator.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")]


def make_estimator(name: str, proxy_batch: str, proxy_batches: int, seed: int) -> diffin.Estimator | None:
    """The estimator of that name; ``None`` for ``"auto"``."""
    settings: dict[str, Callable[[], diffin.Estimator]] = {
        "unrolled": lambda: diffin.Unrolled(seed=seed),
        "replay": diffin.Replay,
        "tracin": diffin.TracIn,
        "moso": lambda: diffin.MoSo(seed=seed),
        "inverse-hessian": lambda: diffin.InverseHessian(seed=seed),
    }
    if name != "diffin":
        return None if name == "auto" else settings[name]()
    size = None if proxy_batch == "all" else whole("--proxy-batch", proxy_batch)
    return diffin.DiffIn(batch_size=size, batches=proxy_batches, seed=seed)


def whole(option: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise DiffinError(f"{option} {text}: pass a whole number, or 'auto' or 'all' where the help says so") from None
