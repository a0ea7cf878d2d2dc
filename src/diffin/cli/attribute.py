"""``diffin attribute``: what each query owes to which training samples."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.table import Table
from torch import Tensor

import diffin
from diffin.attribution import Attribution
from diffin.attribution import attribute as run_attribution
from diffin.cli.options import (
    EstimatorName,
    Parameters,
    ProblemFile,
    Quiet,
    RunFolder,
    Seed,
    Settings,
    make_estimator,
    trained,
    whole,
)
from diffin.cli.terminal import console
from diffin.errors import DiffinError, TaskError
from diffin.provenance import write_run_file
from diffin.sources import Indices, open_source
from diffin.tasks.supervised import split

_SHOWN_QUERIES, _SHOWN_SAMPLES = 5, 3


def attribute(
    context: typer.Context,
    problem: ProblemFile,
    run: RunFolder,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the result (Parquet) and the directions.")],
    top: Annotated[int, typer.Option(help="How many samples of either end to keep for each query.")] = 20,
    estimator: EstimatorName = "auto",
    settings: Settings = None,
    seed: Seed = 0,
    per_class: Annotated[
        bool, typer.Option("--per-class", help="One query for each class, the mean loss of its members.")
    ] = False,
    matrix: Annotated[
        bool, typer.Option("--matrix", help="Also write the influence of every sample on every query.")
    ] = False,
    batch_size: Annotated[str, typer.Option(help="Samples measured at once, or 'auto'.")] = "auto",
    parameters: Parameters = None,
    workers: Annotated[int, typer.Option(help="Processes that read the data.")] = 0,
    resume: Annotated[
        bool, typer.Option(help="Go on with an interrupted run; --no-resume replaces what is there.")
    ] = True,
    quiet: Quiet = False,
) -> None:
    """For every query sample, the training samples that helped it most and those that harmed it most.

    Example: `diffin attribute problem.py runs/a -o pairs/a --top 20`. Killed, the same command goes on where it stopped. The
    problem's query is small here: by steps, every query sample costs about a training (`-e unrolled --set
    propagation=segments` costs the same for any number).
    """
    asked = diffin.load_problem(problem)
    if asked.query is None:
        raise DiffinError(f"{problem} has no query; give its Problem the samples that are asked about")
    start = time.perf_counter()
    found = run_attribution(
        asked.task, trained(asked, run), asked.train, asked.query, top=top, collate=asked.collate,
        estimator=make_estimator(estimator, settings, seed), groups=_classes(asked) if per_class else None,
        batch_size="auto" if batch_size == "auto" else whole("--batch-size", batch_size), matrix=matrix,
        parameters=parameters or None, output=output, resume=resume, progress=not quiet, workers=workers,
    )  # fmt: skip
    write_run_file(output, "attribute", context.params)
    what = "classes" if per_class else "queries"
    console.print(
        f"{found.samples:,} samples and {len(found):,} {what} in {time.perf_counter() - start:.1f} s -> {output}",
        soft_wrap=True,
    )
    _print_ends(found, "class" if per_class else "query")
    if len(found) > _SHOWN_QUERIES:
        console.print(f"All {len(found):,} of them: {output / 'top.parquet'}", soft_wrap=True)


def _classes(asked: diffin.Problem) -> Indices:
    """The class of every query sample."""
    classes: list[Tensor] = []
    for _, batch in open_source(asked.query, collate=asked.collate).batches(256):
        try:
            _, targets = split(batch)
        except TaskError as error:
            raise DiffinError(f"--per-class: the class of a query cannot be told. {error}") from None
        classes.append(targets.argmax(dim=-1) if targets.is_floating_point() and targets.ndim > 1 else targets)
    labels = torch.cat(classes)
    if labels.ndim != 1 or labels.is_floating_point():
        raise DiffinError("--per-class: the targets of the query are not class numbers; leave the option out")
    found: Indices = labels.to(torch.int64).cpu().numpy()
    return found


def _print_ends(found: Attribution, query: str) -> None:
    table = Table(title="Strongest influences on the loss (negative helps, positive harms)", title_justify="left")
    for heading in (query, "proponents: sample (influence)", "opponents: sample (influence)"):
        table.add_column(heading, justify="left")
    for number in range(min(len(found), _SHOWN_QUERIES)):
        ends = [
            ", ".join(
                f"{index} ({influence:+.1e})"
                for index, influence in list(zip(indices[number], influences[number], strict=True))[:_SHOWN_SAMPLES]
            )
            for indices, influences in (
                (found.proponents, found.proponent_influence),
                (found.opponents, found.opponent_influence),
            )
        ]
        table.add_row(str(found.queries[number]), *ends)
    console.print(table)
