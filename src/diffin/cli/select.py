"""``diffin select``: the part of a training set that is worth training on."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table

import diffin
from diffin.actions.select import Iterated, Method, Selection
from diffin.actions.select import select as run_selection
from diffin.cli.export import Apply, From, HardLink, LabelColumn, length_of, opened
from diffin.cli.options import ProblemFile, Quiet, make_estimator, settings_option, trained
from diffin.cli.terminal import console, counted
from diffin.errors import DiffinError
from diffin.estimators import ProbingEstimator
from diffin.export import Chosen, export_parts
from diffin.provenance import write_run_file

_DEFAULTS = Iterated()


def select(
    context: typer.Context,
    problem: ProblemFile,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the selection (Parquet) and its rounds.")],
    run: Annotated[
        Path | None,
        typer.Argument(
            metavar="RUN",
            help="Recorded training on all of the data, which every method but iterated and random goes by. Without it, "
            "the problem's fit makes one. Not for iterated, which trains on parts of the data.",
        ),
    ] = None,
    fractions: Annotated[
        str, typer.Option("--fractions", "-f", help="Shares of the samples to keep, with commas between.")
    ] = "0.1,0.3,0.5",
    method: Annotated[
        Method,
        typer.Option(
            "--method",
            "-m",
            help="iterated: train on a subset, swap, again; influence, moso, self-influence: what helps query, training risk "
            "or itself most; stratified, diverse: influence, spread out; ccs, moderate, k-center: rules that cover; el2n, "
            "grand, forgetting, aum: the hardest.",
        ),
    ] = "iterated",
    rounds: Annotated[int, typer.Option(help="Of iterated: trainings for each share.")] = _DEFAULTS.rounds,
    about: Annotated[
        Literal["training", "query"],
        typer.Option(help="Of iterated: whose loss shall fall, that of the whole training set or of the query."),
    ] = _DEFAULTS.about,
    trust: Annotated[
        bool,
        typer.Option(
            "--trust/--no-trust",
            help="Of iterated: ask less about labels that models not trained on them do not believe.",
        ),
    ] = _DEFAULTS.trust,
    estimator: Annotated[
        Literal["auto", "unrolled", "diffin", "tracin", "inverse-hessian"],
        typer.Option(
            "--estimator",
            "-e",
            help="Of iterated: how influence is found, as in `diffin score`. auto: unrolled, by segments.",
        ),
    ] = "auto",
    estimator_settings: Annotated[
        list[str] | None,
        settings_option("Of iterated: a setting of the estimator, e.g. -e unrolled --set propagation=steps."),
    ] = None,
    balanced: Annotated[
        bool | None,
        typer.Option(
            "--balanced/--unbalanced", help="Keep the proportions of the classes, as is usual with class numbers."
        ),
    ] = None,
    cut: Annotated[
        float | None,
        typer.Option(
            help="Of stratified and ccs: share of hardest samples to drop first; more than are labelled wrongly."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes that read the data.")] = 0,
    resume: Annotated[
        bool, typer.Option(help="Go on with an interrupted selection; --no-resume replaces what is there.")
    ] = True,
    apply: Apply = None,
    source: From = None,
    label_column: LabelColumn = None,
    hard_link: HardLink = False,
    quiet: Quiet = False,
) -> None:
    """Choose a part of the training set to train on.

    Example: `diffin select problem.py -o kept --fractions 0.1,0.3`. The problem's `fit(indices, folder, seed)` trains a new
    model on those samples and records it; eight trainings a share, and the query judges the result. Every other method goes
    by one training: `diffin select problem.py runs/a -o kept-ccs --method ccs`. Killed, the same command goes on with the
    round it was at. `--apply data/kept --from data/train` also writes the samples themselves; of several shares, into a
    folder each, `data/kept/0.1`.
    """
    asked = diffin.load_problem(problem)
    data = opened(length_of(asked), apply, source, label_column, hard_link)
    start = time.perf_counter()
    selection = run_selection(
        asked.task, asked.train, fractions=_shares(fractions), method=method, query=asked.query, fit=asked.fit, seed=seed,
        trajectory=None if run is None else trained(asked, run), class_balanced=balanced, cut=cut, output=output,
        settings=_iterated(method, rounds, about, trust, estimator, estimator_settings, seed), resume=resume, workers=workers,
        progress=not quiet, collate=asked.collate,
    )  # fmt: skip
    write_run_file(output, "select", context.params)
    console.print(
        f"{selection.size:,} samples, {counted(len(selection), 'share')} by {method} in {time.perf_counter() - start:.1f} s "
        f"-> {output}",
        soft_wrap=True,
    )
    console.print(_table(selection))
    if data is not None and apply is not None:
        names = [f"{kept.fraction:g}" if len(selection) > 1 else "" for kept in selection.kept]
        parts = zip(names, selection.kept, strict=True)
        export_parts(data, apply, {name: Chosen(selection.size, kept.indices) for name, kept in parts})
        console.print(f"The samples themselves -> {', '.join(str(apply / name) for name in names)}", soft_wrap=True)
    cost = selection.cost
    console.print(
        f"In all {counted(cost.trainings, 'training')}; {cost.training_seconds:,.1f} s in those made here, "
        f"{cost.scoring_seconds:,.1f} s in the rest.",
        soft_wrap=True,
    )


def _shares(text: str) -> list[float]:
    try:
        return [float(part) for part in text.replace(",", " ").split()]
    except ValueError:
        raise DiffinError(f"--fractions {text}: pass shares with commas between, e.g. 0.1,0.3") from None


def _iterated(
    method: str,
    rounds: int,
    about: Literal["training", "query"],
    trust: bool,
    name: str,
    given: list[str] | None,
    seed: int,
) -> Iterated | None:
    made = make_estimator(name, given, seed)
    if method != "iterated":
        if made is not None or (rounds, about, trust) != (_DEFAULTS.rounds, _DEFAULTS.about, _DEFAULTS.trust):
            raise DiffinError(
                f"--rounds, --about, --no-trust, --estimator and --set are of --method iterated, not of {method}; leave them "
                "out"
            )
        return None
    if made is None:
        return Iterated(rounds=rounds, about=about, trust=trust)
    assert isinstance(made, ProbingEstimator)  # the option takes no others
    return Iterated(rounds=rounds, about=about, trust=trust, estimator=made)


def _table(selection: Selection) -> Table:
    losses = selection.details.get("held_out_loss", {})
    judge = "loss on the training set" if selection.details.get("query") is None else "held-out loss"
    table = Table(title="What is kept", title_justify="left")
    for heading in ("share", "samples", *([f"{judge}: random", "best of the rounds"] if losses else [])):
        table.add_column(heading, justify="right")
    for kept in selection.kept:
        of = losses.get(f"{kept.fraction:g}", [])
        told = [f"{of[0]:.4g}", f"{min(of):.4g}"] if of else []
        table.add_row(f"{kept.fraction:g}", f"{len(kept.indices):,}", *told)
    return table
