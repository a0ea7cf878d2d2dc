"""``diffin clean``: which labels of a training set are probably wrong."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

import diffin
from diffin.actions.checks import end_of
from diffin.actions.clean import Suspects, cleaned, read_decisions, write_cleaned
from diffin.actions.clean import clean as run_clean
from diffin.actions.clean.suspects import MANIFEST
from diffin.cli.export import Apply, From, HardLink, LabelColumn, length_of, opened
from diffin.cli.options import ProblemFile, Quiet, RunFolder, trained, whole
from diffin.cli.terminal import console, plain
from diffin.errors import DiffinError, MissingDependencyError
from diffin.export import Chosen, export
from diffin.provenance import FILE_NAME as RUN_FILE
from diffin.provenance import write_run_file
from diffin.report.review import Doubt, write_review
from diffin.sample import Sample
from diffin.sources import open_source
from diffin.tasks import Classification

REVIEW, CLEANED = "review.html", "cleaned.parquet"
_SHOWN = 10
_MOST_REVIEWED = 1000
_EVIDENCE = {
    "neighbours": "near samples of the same label",
    "mean_loss": "loss over the training",
    "final_loss": "loss at its end",
}


def clean(
    context: typer.Context,
    problem: ProblemFile,
    run: RunFolder,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the suspects (Parquet) and the review page.")
    ],
    threshold: Annotated[
        float, typer.Option(help="From which probability of a wrong label a sample is left out.")
    ] = 0.5,
    decisions: Annotated[
        Path | None,
        typer.Option(
            help="What a person decided on the review page, exported from there; followed where there is one."
        ),
    ] = None,
    trust_query: Annotated[
        bool, typer.Option("--trust-query", help="The labels of the problem's query are right: use them as evidence.")
    ] = False,
    evidence: Annotated[
        list[str] | None,
        typer.Option(help="Rank by this single signal, e.g. mean_loss, in the place of all evidence. May be repeated."),
    ] = None,
    self_influence: Annotated[
        bool, typer.Option("--self-influence", help="Also gradient norms and self-influence, by tracin: slower.")
    ] = False,
    batch_size: Annotated[str, typer.Option(help="Samples measured at once, or 'auto'.")] = "auto",
    workers: Annotated[int, typer.Option(help="Processes that read the data.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace suspects that are there already.")] = False,
    apply: Apply = None,
    source: From = None,
    label_column: LabelColumn = None,
    hard_link: HardLink = False,
    quiet: Quiet = False,
) -> None:
    """Find the labels that are probably wrong, and what they should be.

    Example: `diffin clean problem.py runs/a -o suspects`, then open `suspects/review.html`, decide by keyboard, export, and
    `diffin clean problem.py runs/a -o suspects --decisions decisions.json`. `cleaned.parquet` holds what is left: index and
    label. With `--apply data/clean --from data/train`, the data themselves are written without the rest, those that a person
    relabelled under their new label. With either option, suspects that are in the folder already are not computed again; nor
    does the same command compute them again after it was killed. Forward passes only; a run with checkpoints from its first
    epochs tells most.
    """
    asked = diffin.load_problem(problem)
    if not 0 <= threshold <= 1:
        raise DiffinError(f"--threshold {threshold}: pass a probability, from 0 to 1")
    if trust_query and asked.query is None:
        raise DiffinError(f"--trust-query: {problem} has no query; give its Problem samples whose labels are right")
    data = opened(length_of(asked), apply, source, label_column, hard_link)
    start = time.perf_counter()
    if decisions is not None and not decisions.is_file():
        raise DiffinError(f"--decisions {decisions}: there is no such file; export it on the review page")
    if not overwrite and (output / MANIFEST).exists():
        found = Suspects.open(output)
        # Written last: without it, the run that computed them was killed, and all but the suspects is made now.
        finished = (output / RUN_FILE).exists()
        acted_on = decisions is not None or apply is not None
        if finished and (evidence or trust_query or self_influence or not acted_on):
            raise DiffinError(
                f"--output {output} holds suspects already; pass --overwrite to compute them again, or another"
            )
        if not finished and not acted_on:
            _refuse_others(found, output, asked, trained(asked, run), evidence, trust_query, self_influence)
    else:
        found = run_clean(
            asked.task, trained(asked, run), asked.train, query=asked.query if trust_query else None,
            evidence=evidence or "auto", self_influence=(diffin.TracIn(),) if self_influence else (),
            batch_size="auto" if batch_size == "auto" else whole("--batch-size", batch_size),
            collate=asked.collate, workers=workers, progress=not quiet,
        )  # fmt: skip
        for name in (REVIEW, CLEANED, RUN_FILE):
            (output / name).unlink(missing_ok=True)  # They are of other suspects.
        found.save(output, overwrite=overwrite)
    decided = (
        []
        if decisions is None
        else read_decisions(decisions, labels=found.given.tolist(), classes=len(found.confusion))
    )
    index, labels = cleaned(found, threshold, decided)
    write_cleaned(output / CLEANED, index, labels)
    names = _class_names(asked, len(found.confusion))
    doubted = found.suspects(threshold)
    console.print(
        f"{len(doubted):,} of {len(found):,} labels doubted (estimated noise rate {found.noise_rate:.1%}), {len(index):,} "
        f"samples left, {len(decided):,} by decision, in {time.perf_counter() - start:.1f} s -> {output}",
        soft_wrap=True,
    )
    _print_doubted(found, doubted[:_SHOWN].tolist(), names)
    if len(doubted) and decisions is None:
        _review(found, doubted[:_MOST_REVIEWED].tolist(), asked, names, output)
    if data is not None and apply is not None:
        chosen = Chosen(len(found), index, found.given, labels)
        export(data, apply, chosen)
        console.print(f"{len(index):,} samples, {len(chosen.relabelled):,} relabelled -> {apply}", soft_wrap=True)
    write_run_file(output, "clean", context.params)


def _refuse_others(
    found: Suspects,
    output: Path,
    asked: diffin.Problem,
    run: diffin.Trajectory,
    evidence: list[str] | None,
    trust_query: bool,
    self_influence: bool,
) -> None:
    """Raise if the suspects that a killed run left are not those that are asked for now."""
    there = {**found.details, "self_influence": "gradient_norm" in found.signals}
    now = {
        "evidence": evidence or "auto",
        "query": trust_query,
        "self_influence": self_influence,
        "run": end_of(run),
        "train": Sample.of(open_source(asked.train, collate=asked.collate)).digest(),
    }
    if any(there.get(name) != value for name, value in now.items()):
        raise DiffinError(
            f"--output {output} holds suspects of another run, training set or evidence; pass --overwrite to compute them "
            "again, or another"
        )


def _class_names(asked: diffin.Problem, classes: int) -> list[str]:
    named = asked.task.class_names if isinstance(asked.task, Classification) else None
    return list(named) if named is not None and len(named) == classes else [str(number) for number in range(classes)]


def _print_doubted(found: Suspects, doubted: list[int], names: list[str]) -> None:
    if not doubted:
        return
    table = Table(title="Most doubtful labels", title_justify="left")
    for heading in ("sample", "given", "wrong with", "rather", "with"):
        table.add_column(heading)
    rows = found.rows
    for index in doubted:
        row = rows[index]
        table.add_row(
            str(index),
            plain(names[int(found.given[row])]),
            f"{found.probability[row]:.0%}",
            plain(names[int(found.suggested[row])]),
            f"{found.suggestion_probability[row]:.0%}",
        )
    console.print(table)


def _review(found: Suspects, doubted: list[int], asked: diffin.Problem, names: list[str], output: Path) -> None:
    rows = found.rows
    doubts = []
    for index in doubted:
        row = rows[index]
        words = tuple(
            (text, f"{found.signals[name][row]:.2g}") for name, text in _EVIDENCE.items() if name in found.signals
        )
        doubts.append(
            Doubt(index, int(found.given[row]), int(found.suggested[row]), float(found.probability[row]), words)
        )
    try:
        page = write_review(doubts, output / REVIEW, problem=asked, classes=names, samples=len(found))
    except MissingDependencyError as error:
        console.print(f"No review page: {error}", soft_wrap=True)
        return
    console.print(f"[bold]Decide about them:[/] {page.resolve()}", soft_wrap=True)
