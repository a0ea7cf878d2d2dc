"""The command line: what the library does, said in a shell."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

import diffin
from diffin.errors import DiffinError, ProblemError
from diffin.progress import phase as progress_phase
from diffin.provenance import environment, read_command, write_run_file

app = typer.Typer(
    name="diffin",
    help="What training on each sample did to a model: negative influence helps, positive harms.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
console = Console()
errors = Console(stderr=True)

ProblemFile = Annotated[
    Path,
    typer.Argument(metavar="PROBLEM", help="Python file with `def problem() -> diffin.Problem` (task, train, query)."),
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Folder that a diffin.Recorder wrote.")]
Parameters = Annotated[
    Optional[list[str]],  # noqa: UP045 - typer reads the annotation at run time
    typer.Option(
        "--parameters", "-p", help="Study only parameters whose name matches, e.g. 'head.*'. May be repeated."
    ),
]
EstimatorName = Annotated[
    Literal["diffin", "tracin", "moso"],
    typer.Option(
        "--estimator", "-e", help="diffin: Eq. 9 of the paper; tracin: first order; moso: on the training risk."
    ),
]
ProxyBatch = Annotated[str, typer.Option(help="diffin: size of the proxy batch at a checkpoint, or 'all'.")]
ProxyBatches = Annotated[int, typer.Option(help="diffin: proxy batches per checkpoint, averaged.")]
Seed = Annotated[int, typer.Option(help="Seed of the draws of the estimator.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")]


def main() -> None:
    """Entry point: a mistake of the user is one sentence and exit code 2, not a traceback."""
    logging.basicConfig(
        level=logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=errors, show_path=False, show_time=False)],
    )
    try:
        app()
    except DiffinError as error:
        errors.print(f"[bold red]error:[/] {_plain(str(error))}", highlight=False, soft_wrap=True)
        cause = error.__cause__
        if isinstance(error, ProblemError) and cause is not None:
            # The mistake is in the user's own file: they need to see where.
            import traceback

            errors.print(_plain("".join(traceback.format_exception(cause))), highlight=False, soft_wrap=True)
        raise SystemExit(2) from None


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for everything the demo leaves.")] = Path(
        "diffin-demo"
    ),
    seed: Annotated[int, typer.Option(help="Seed of data, model and training.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Train on digits of which a tenth are mislabelled, and find out which samples harmed. About a minute.

    Leaves the recorded run, the scores and a page in the output folder.
    """
    import torch

    from diffin import demo as example
    from diffin.report import write_report

    # Kernels this small only wait for each other on more threads.
    torch.set_num_threads(1)

    run, scores_folder, page = output / "run", output / "scores", output / "report.html"
    if output.exists() and any(output.iterdir()) and read_command(output) != "demo":
        raise DiffinError(f"--output {output}: the folder holds something other than an earlier demo; pass another one")
    write_run_file(output, "demo", {"output": str(output), "seed": seed})
    shutil.rmtree(run, ignore_errors=True)
    with _phase("Loading 5,000 handwritten digits (MNIST)"):
        data = example.load(seed)
    flags = data.flipped
    console.print(
        f"  {len(data.train):,} to train on, {flags.sum()} of them mislabelled on purpose; "
        f"{len(data.query)} clean ones to ask about"
    )
    model = example.build_model(seed)
    with _phase(f"Training a small CNN for {example.EPOCHS} epochs, recorded") as done:
        with progress_phase("training", example.EPOCHS, show=not quiet) as bar:
            example.train(model, data, run, seed=seed, after_epoch=bar.advance)
        done.append(f"accuracy on the clean digits {example.accuracy(model, data.query):.1%}")
    trajectory = diffin.Trajectory.open(run)
    task = diffin.tasks.Classification(model)
    estimators: dict[str, diffin.Estimator] = {"DiffIn": diffin.DiffIn(), "TracIn": diffin.TracIn()}
    results = {}
    for name, estimator in estimators.items():
        with _phase(f"Scoring every sample with {name}") as done:
            results[name] = diffin.score(
                task, trajectory, data.train, query=data.query, estimator=estimator,
                output=scores_folder / name.lower(), resume=False, progress=not quiet,
            )  # fmt: skip
            check = results[name].metadata["self_check"]
            done.append(f"derivatives by '{check['chosen']}', self-check error {_chosen(check)['error']:.1g}")
    scores = results["DiffIn"]
    final = trajectory.final
    with _phase("Writing the page"):
        write_report(
            scores, page, problem=diffin.Problem(task, data.train, data.query), state=None if final is None else final.state,
            flagged=flags.nonzero()[0].tolist(), flagged_as="mislabelled", title="Which digits harmed?",
            extra={"seed": seed, **environment()},
        )  # fmt: skip

    worst = Table(title="The ten samples that harmed the clean digits most, by DiffIn", title_justify="left")
    for heading in ("sample", "labelled", "truly", "influence", "standard error"):
        worst.add_column(heading, justify="right")
    for index in scores.most_harmful(10):
        label, truth = int(data.train.tensors[1][index]), int(data.truth[index])
        mark = f"[red]{truth}[/]" if label != truth else f"{truth}"
        worst.add_row(
            str(index), str(label), mark, f"{scores.influence[index]:+.2e}", f"{scores.standard_error[index]:.1e}"
        )
    console.print(worst)
    table = Table(
        title=f"How many of the {flags.sum()} mislabelled digits stand at the top of each ranking", title_justify="left"
    )
    for heading in ("ranking", "in the first 10 %", "in the first 20 %"):
        table.add_column(heading, justify="left" if heading == "ranking" else "right")
    rankings = {f"influence, {name}": result.influence for name, result in results.items()}
    rankings["the sample's own loss, mean over checkpoints"] = scores.loss
    for name, ranking in rankings.items():
        table.add_row(name, f"{example.found(ranking, flags, 0.1):.0%}", f"{example.found(ranking, flags, 0.2):.0%}")
    table.add_row("at random", "10%", "20%")
    console.print(table)
    console.print(f"{scores.stability.sentence()}\n")
    console.print(f"[bold]The page:[/] {page.resolve()}", soft_wrap=True)


@app.command()
def score(
    problem: ProblemFile,
    run: RunFolder,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the scores (Parquet) and the probes.")],
    estimator: EstimatorName = "diffin",
    proxy_batch: ProxyBatch = "512",
    proxy_batches: ProxyBatches = 1,
    seed: Seed = 0,
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
    report: Annotated[bool, typer.Option(help="Also write report.html into the output folder.")] = True,
    quiet: Quiet = False,
) -> None:
    """Score every training sample of a recorded run.

    Example: `diffin score problem.py runs/a -o scores/a`. Killed, the same command goes on where it stopped.
    """
    asked = diffin.load_problem(problem)
    trajectory = diffin.Trajectory.open(run)
    arguments = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in locals().items()
        if name in _SCORE_ARGUMENTS
    }
    start = time.perf_counter()
    scores = diffin.score(
        asked.task, trajectory, asked.train, query=asked.query, collate=asked.collate,
        estimator=_estimator(estimator, proxy_batch, proxy_batches, seed), derivatives=derivatives,
        batch_size="auto" if batch_size == "auto" else _whole("--batch-size", batch_size),
        parameters=parameters or None, output=output, resume=resume, progress=not quiet, workers=workers,
    )  # fmt: skip
    write_run_file(output, "score", arguments)
    console.print(f"{len(scores):,} samples scored in {time.perf_counter() - start:.1f} s -> {output}", soft_wrap=True)
    _print_ends(scores)
    console.print(scores.stability.sentence())
    if report:
        final = trajectory.final
        page = _write_page(scores, output / "report.html", asked, None if final is None else final.state, seed)
        console.print(f"[bold]The page:[/] {page.resolve()}", soft_wrap=True)


@app.command()
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
    final = None if run is None else diffin.Trajectory.open(run).final
    page = _write_page(
        opened, output or scores / "report.html", asked, None if final is None else final.state, None, top
    )
    console.print(f"[bold]The page:[/] {page.resolve()}", soft_wrap=True)


@app.command()
def diagnose(
    problem: ProblemFile,
    run: RunFolder,
    estimator: EstimatorName = "diffin",
    proxy_batch: ProxyBatch = "512",
    proxy_batches: ProxyBatches = 1,
    seed: Seed = 0,
    parameters: Parameters = None,
    quiet: Quiet = False,
) -> None:
    """Before a long run: do the derivatives hold, how long will it take, and what cannot be replayed.

    Example: `diffin diagnose problem.py runs/a`. Measures a few hundred samples at three checkpoints.
    """
    from diffin.diagnose import diagnose as run_diagnosis

    asked = diffin.load_problem(problem)
    trajectory = diffin.Trajectory.open(run)
    found = run_diagnosis(
        asked,
        trajectory,
        estimator=_estimator(estimator, proxy_batch, proxy_batches, seed),
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
        note = (
            _plain(entry.failure) if entry.failure else "[bold]<- auto[/]" if entry.name == found.check.chosen else ""
        )
        table.add_row(
            entry.name,
            _number(entry.step),
            _number(entry.error),
            _number(entry.rank_agreement, ".4f"),
            _number(entry.cost, ".1f"),
            note,
        )
    console.print(table)
    forecast = found.forecast
    console.print(
        f"Building probes at {forecast.checkpoints} checkpoints: about {forecast.probe_seconds:,.0f} s, "
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
        "Replay: " + ("nothing stands in its way." if not found.replay_obstacles else "not possible, because")
    )
    for obstacle in found.replay_obstacles:
        console.print(f"  - {_plain(obstacle)}", soft_wrap=True)


_SCORE_ARGUMENTS = frozenset(
    (
        "problem",
        "run",
        "output",
        "estimator",
        "proxy_batch",
        "proxy_batches",
        "seed",
        "derivatives",
        "batch_size",
        "parameters",
        "workers",
        "resume",
        "report",
    )
)


def _estimator(name: str, proxy_batch: str, proxy_batches: int, seed: int) -> diffin.Estimator:
    if name == "tracin":
        return diffin.TracIn()
    if name == "moso":
        return diffin.MoSo(seed=seed)
    size = None if proxy_batch == "all" else _whole("--proxy-batch", proxy_batch)
    return diffin.DiffIn(batch_size=size, batches=proxy_batches, seed=seed)


def _whole(option: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise DiffinError(f"{option} {text}: pass a whole number, or 'auto' or 'all' where the help says so") from None


def _write_page(
    scores: diffin.Scores, path: Path, asked: diffin.Problem | None, state: Any, seed: int | None, top: int = 24
) -> Path:
    from diffin.report import write_report

    extra = {**({} if seed is None else {"seed": seed}), **environment()}
    return write_report(scores, path, problem=asked, state=state, extra=extra, top=top)


def _print_ends(scores: diffin.Scores) -> None:
    table = Table(title="Influence on the query loss (positive harms, negative helps)", title_justify="left")
    for heading in ("most harmful", "influence", "most helpful", "influence"):
        table.add_column(heading, justify="right")
    for harmful, helpful in zip(scores.most_harmful(5), scores.most_helpful(5), strict=True):
        table.add_row(
            str(harmful), f"{scores.influence[harmful]:+.3e}", str(helpful), f"{scores.influence[helpful]:+.3e}"
        )
    console.print(table)


@contextmanager
def _phase(description: str) -> Iterator[list[str]]:
    """Prints what is being done and, afterwards, how long it took and what is appended to the yielded list."""
    console.print(f"[bold]{description}[/]")
    start = time.perf_counter()
    remarks: list[str] = []
    yield remarks
    console.print(f"  {', '.join([f'{time.perf_counter() - start:.1f} s', *remarks])}")


def _chosen(check: dict[str, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = next(entry for entry in check["back_ends"] if entry["name"] == check["chosen"])
    return entry


def _number(value: float | None, form: str = ".1e") -> str:
    return "-" if value is None else format(value, form)


def _plain(text: str) -> str:
    """Text that rich does not take for markup."""
    from rich.markup import escape

    return escape(text)
