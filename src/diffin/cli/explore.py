"""``diffin explore``: looking through saved scores in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import diffin
from diffin.cli.terminal import console
from diffin.errors import DiffinError


def explore(
    scores: Annotated[Path, typer.Argument(metavar="SCORES", help="Folder that `diffin score` wrote.")],
    problem: Annotated[Path | None, typer.Option("--problem", help="Problem file, to show samples and labels.")] = None,
    run: Annotated[
        Path | None, typer.Option("--run", help="Recorded run, to show what its final model predicts.")
    ] = None,
    suspects: Annotated[
        Path | None, typer.Option("--suspects", help="Folder that `diffin clean` wrote: doubts and single signals.")
    ] = None,
    attribution: Annotated[
        Path | None,
        typer.Option("--attribution", help="Folder that `diffin attribute` wrote: proponents and opponents."),
    ] = None,
    columns: Annotated[
        Path | None,
        typer.Option(
            "--columns",
            help="Parquet file with a row for every sample, or a column index (or key): more to filter and sort by.",
        ),
    ] = None,
    decisions: Annotated[
        Path | None,
        typer.Option("--decisions", help="File that decisions are kept in; SCORES/decisions.json by default."),
    ] = None,
    port: Annotated[int, typer.Option("--port", help="To listen on; 0 for any that is free.")] = 0,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")] = True,
) -> None:
    """Look through saved scores on a page of this machine: filter, sort, see samples, decide about them.

    Example: `diffin explore scores/a --problem problem.py --run runs/a`. The page opens from this machine only, with the
    address that is printed; Ctrl-C ends it. Decisions are saved as they are made, and followed by
    `diffin clean problem.py runs/a -o suspects --decisions scores/a/decisions.json`.
    """
    from diffin.explore import explore as serve

    if run is not None and problem is None:
        raise DiffinError("--run: say with --problem what the run was trained on")
    asked = None if problem is None else diffin.load_problem(problem)
    explorer = serve(
        scores, asked, run=run, suspects=suspects, attribution=attribution, columns=columns, decisions=decisions, port=port,
        title=scores.resolve().name, browser=browser, block=False,
    )  # fmt: skip
    with explorer:
        console.print(f"[bold]The page:[/] {explorer.url}", soft_wrap=True, highlight=False)
        console.print("Only this machine can open it. Ctrl-C ends it.")
        try:
            explorer.wait()
        except KeyboardInterrupt:
            console.print()
    counts = explorer.marks.counts
    console.print(
        f"{counts['keep']:,} kept, {counts['drop']:,} to drop, {counts['relabel']:,} to relabel"
        + (f" -> {explorer.marks.path}" if explorer.marks.path is not None and explorer.marks.path.exists() else ""),
        soft_wrap=True,
    )
