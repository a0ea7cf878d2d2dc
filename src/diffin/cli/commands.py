"""``diffin score``, ``report`` and ``diagnose``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Literal, TypedDict

import typer
from rich.table import Table

import diffin
from diffin.cli.engines import UNREAD, EngineName, RaySettings, make_engine, report_unread
from diffin.cli.options import (
    EstimatorName,
    Parameters,
    ProblemFile,
    Quiet,
    RunFolder,
    RunFolders,
    Seed,
    Settings,
    make_estimator,
    trained,
    whole,
)
from diffin.cli.terminal import console, number, plain
from diffin.errors import DiffinError
from diffin.provenance import environment, write_run_file
from diffin.scoring import ScoringEngine
from diffin.scoring.plan import BatchSize
from diffin.sources import Collate


class _Options(TypedDict):
    collate: Collate | None
    batch_size: BatchSize
    parameters: list[str] | None
    output: Path
    resume: bool
    progress: bool
    workers: int
    engine: ScoringEngine


def score(
    context: typer.Context,
    problem: ProblemFile,
    run: RunFolders,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the scores (Parquet) and the probes.")],
    estimator: EstimatorName = "auto",
    settings: Settings = None,
    seed: Seed = 0,
    self_influence: Annotated[
        bool,
        typer.Option(
            "--self-influence",
            help="The effect of each sample on its own loss, in the place of the query's; by unrolled (the default), diffin "
            "(Eq. 12) or tracin.",
        ),
    ] = False,
    derivatives: Annotated[
        Literal["auto", "difference", "forward", "ghost"],
        typer.Option(
            "--derivatives",
            "-d",
            help="How derivatives are taken; auto: the cheapest that a self-check finds accurate.",
        ),
    ] = "auto",
    batch_size: Annotated[str, typer.Option(help="Samples measured at once, or 'auto'.")] = "auto",
    parameters: Parameters = None,
    workers: Annotated[int, typer.Option(help="Processes that read the data.")] = 0,
    resume: Annotated[
        bool, typer.Option(help="Go on with an interrupted run; --no-resume replaces what is there.")
    ] = True,
    engine: EngineName = "local",
    ray: RaySettings = None,
    report: Annotated[bool, typer.Option(help="Also write report.html into the output folder.")] = True,
    quiet: Quiet = False,
) -> None:
    """Score every training sample of a recorded run, or of several.

    Example: `diffin score problem.py runs/a -o scores/a`. Killed, the same command goes on where it stopped. With
    `runs/a runs/b runs/c`, recorded in other orders, the influence is the mean and has a standard error. Ends with code 3 if
    some samples could not be read.
    """
    by = make_engine(engine, ray, problem)
    asked = diffin.load_problem(problem)
    trajectories = [trained(asked, folder) for folder in run]
    start = time.perf_counter()
    options: _Options = {
        "collate": asked.collate,
        "batch_size": "auto" if batch_size == "auto" else whole("--batch-size", batch_size),
        "parameters": parameters or None,
        "output": output,
        "resume": resume,
        "progress": not quiet,
        "workers": workers,
        "engine": by,
    }
    made = make_estimator(estimator, settings, seed)
    if self_influence:
        if len(trajectories) > 1 or derivatives != "auto":
            raise DiffinError("--self-influence: pass one run, and no --derivatives")
        if not (made is None or isinstance(made, diffin.Unrolled | diffin.DiffIn | diffin.TracIn)):
            raise DiffinError(
                f"--self-influence is not known for {estimator}; pass --estimator unrolled, diffin or tracin"
            )
        scores = diffin.self_influence(asked.task, trajectories[0], asked.train, estimator=made, **options)
    else:
        scores = diffin.score(
            asked.task, trajectories, asked.train, query=asked.query, estimator=made, derivatives=derivatives, **options
        )
    if not by.speaks:
        return
    write_run_file(output, "score", context.params)
    console.print(f"{len(scores):,} samples scored in {time.perf_counter() - start:.1f} s -> {output}", soft_wrap=True)
    what = "loss of the sample itself" if self_influence else "training risk" if estimator == "moso" else "query loss"
    _print_ends(scores, what, ("least needed", "most needed") if self_influence else ("most harmful", "most helpful"))
    console.print(scores.stability.sentence())
    if report:
        page = _write_page(scores, output / "report.html", asked, trajectories[-1], seed=seed)
        console.print(f"[bold]The page:[/] {page.resolve()}", soft_wrap=True)
    # torchrun would take another code than 0 for a process that died, and start all of them again.
    if report_unread(scores, output) and engine != "torchrun":
        raise typer.Exit(UNREAD)


def report(
    scores: Annotated[Path, typer.Argument(metavar="SCORES", help="Folder that `diffin score` wrote.")],
    problem: Annotated[Path | None, typer.Option("--problem", help="Problem file, to show samples and labels.")] = None,
    run: Annotated[
        Path | None, typer.Option("--run", help="Recorded run, to show what its final model predicts.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The page; SCORES/report.html by default.")
    ] = None,
    top: Annotated[int, typer.Option(help="How many samples to show of either end.")] = 24,
) -> None:
    """Write saved scores as one self-contained HTML page.

    Example: `diffin report scores/a --problem problem.py --run runs/a`.
    """
    opened = diffin.Scores.open(scores)
    asked = None if problem is None else diffin.load_problem(problem)
    trajectory = None if run is None else trained(asked, run)
    page = _write_page(opened, output or scores / "report.html", asked, trajectory, top=top)
    console.print(f"[bold]The page:[/] {page.resolve()}", soft_wrap=True)


def diagnose(
    problem: ProblemFile,
    run: RunFolder,
    estimator: EstimatorName = "auto",
    settings: Settings = None,
    seed: Seed = 0,
    parameters: Parameters = None,
    luck: Annotated[
        bool,
        typer.Option(help="Also walk through the training, to say how much of its influences is luck of its order."),
    ] = False,
    plan: Annotated[
        str | None, typer.Option(metavar="N", help="Also say what scoring N samples will take, e.g. 12.8M.")
    ] = None,
    machines: Annotated[int, typer.Option(help="... on so many machines", min=1)] = 1,
    processes: Annotated[int, typer.Option(help="... with so many processes each", min=1)] = 1,
    speed: Annotated[float, typer.Option(help="... each so many times as fast as this one")] = 1.0,
    price: Annotated[float | None, typer.Option(help="... at this price of a machine an hour")] = None,
    sample_bytes: Annotated[
        str | None, typer.Option(help="... and samples of so many bytes on disk, e.g. 25k.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Before a long run: do the derivatives hold, how long will it take, and what cannot be replayed.

    Example: `diffin diagnose problem.py runs/a`. Measures a few hundred samples at three checkpoints. With `--luck`, which
    takes some trainings' time: can one run tell about the data, or was it chance? With `--plan 12.8M --machines 8
    --processes 16 --price 2.5`: the time, memory, disk and cost of scoring so many samples on a cluster.
    """
    from diffin.cli.planning import plan_table, quantity
    from diffin.diagnose import diagnose as run_diagnosis
    from diffin.diagnose import luck as measure_luck
    from diffin.planning import Machines
    from diffin.planning import plan as make_plan

    asked = diffin.load_problem(problem)
    trajectory = trained(asked, run)
    found = run_diagnosis(
        asked,
        trajectory,
        estimator=make_estimator(estimator, settings, seed),
        parameters=parameters or None,
        progress=not quiet,
    )
    table = Table(
        title=f"Derivatives, on {found.check.samples} samples (reference: {found.check.reference})",
        title_justify="left",
    )
    for heading in ("back end", "step", "error", "rank agreement", "cost / forward", ""):
        table.add_column(heading, justify="left" if heading in ("back end", "") else "right")
    for entry in found.check.back_ends:
        note = plain(entry.failure) if entry.failure else "[bold]<- auto[/]" if entry.name == found.check.chosen else ""
        table.add_row(
            entry.name,
            number(entry.step),
            number(entry.error),
            number(entry.rank_agreement, ".4f"),
            number(entry.cost, ".1f"),
            note,
        )
    console.print(table)
    forecast = found.forecast
    console.print(f"Estimator: {plain(found.estimator)}")
    if not forecast.checkpoints:
        console.print(f"Walking through the training: about {forecast.probe_seconds:,.0f} s, and nothing after it.")
    else:
        console.print(
            f"Building probes at {forecast.checkpoints} states: about {forecast.probe_seconds:,.0f} s, "
            f"{forecast.probe_bytes / 1e6:,.1f} MB on disk."
        )
        if forecast.scoring_seconds is not None and forecast.inference_seconds is not None:
            console.print(
                f"Scoring {forecast.samples:,} samples: about {forecast.scoring_seconds:,.0f} s on this machine "
                f"(plain inference of the same: {forecast.inference_seconds:,.0f} s)."
            )
        else:
            console.print("The training set does not say how long it is, so the time of scoring cannot be told.")
    console.print(
        "Replay: "
        + (
            "a few steps were repeated, and nothing stood in the way."
            if not found.replay_obstacles
            else "not possible, because"
        )
    )
    for obstacle in found.replay_obstacles:
        console.print(f"  - {plain(obstacle)}", soft_wrap=True)
    if plan is not None:
        fleet = Machines(machines, processes, speed, price)
        stored = None if sample_bytes is None else quantity("--sample-bytes", sample_bytes)
        planned = make_plan(found, round(quantity("--plan", plan)), machines=fleet, sample_bytes=stored)
        console.print(plan_table(planned))
    if luck:
        console.print(_about_luck(measure_luck(asked, trajectory, progress=not quiet)))


def _about_luck(agreement: float) -> str:
    if agreement >= 0.9:
        verdict = "one run tells about the data"
    elif agreement >= 0.7:
        verdict = "the mean of several runs is usually more accurate (give `diffin score` more than one)"
    else:
        verdict = (
            "much of what one run shows is chance: average several (give `diffin score` more than one) with `--set "
            "hessian=gauss-newton`, or train with a smaller or decaying learning rate"
        )
    return (
        f"Influence on this run and influence to expect agree to {agreement:.2f} (Spearman over the training set): "
        f"{verdict}."
    )


def _write_page(
    scores: diffin.Scores,
    path: Path,
    asked: diffin.Problem | None,
    trajectory: diffin.Trajectory | None,
    *,
    seed: int | None = None,
    top: int = 24,
) -> Path:
    from diffin.report import write_report

    final = None if trajectory is None else trajectory.final
    extra = {**({} if seed is None else {"seed": seed}), **environment()}
    return write_report(scores, path, problem=asked, state=None if final is None else final.state, extra=extra, top=top)


def _print_ends(scores: diffin.Scores, about: str, ends: tuple[str, str]) -> None:
    table = Table(title=f"Influence on the {about} (positive harms, negative helps)", title_justify="left")
    for heading in (ends[0], "influence", ends[1], "influence"):
        table.add_column(heading, justify="right")
    for harmful, helpful in zip(scores.most_harmful(5), scores.most_helpful(5), strict=True):
        table.add_row(
            str(harmful), f"{scores.influence[harmful]:+.3e}", str(helpful), f"{scores.influence[helpful]:+.3e}"
        )
    console.print(table)
