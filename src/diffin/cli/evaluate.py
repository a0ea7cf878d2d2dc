"""``diffin evaluate``: how good are the scores of this run?"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer
from rich.table import Table

import diffin
from diffin.cli.options import EstimatorName, ProblemFile, Quiet, RunFolder, make_estimator, trained, whole
from diffin.cli.terminal import console, plain
from diffin.errors import DiffinError
from diffin.files import write_json
from diffin.provenance import environment, write_run_file

if TYPE_CHECKING:
    from diffin.evaluation import Truth
    from diffin.report.agreement import Compared

_ESTIMATORS: tuple[str, ...] = get_args(get_args(EstimatorName)[0])
_ORDERS = 8
_GROUP, _SUBSET = 0.02, 0.5


def evaluate(
    context: typer.Context,
    problem: ProblemFile,
    run: RunFolder,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for truth, scores, table and page.")],
    truth: Annotated[
        Literal["loo", "groups", "lds", "expected"],
        typer.Option(
            "--truth",
            "-t",
            help="loo: train again without single samples; groups: without groups; lds: on random subsets (the linear "
            "datamodeling score); expected: the exact derivative for all samples, mean over other orders of the data.",
        ),
    ] = "loo",
    scores: Annotated[
        list[Path] | None, typer.Option("--scores", "-s", help="Folder that `diffin score` wrote. May be repeated.")
    ] = None,
    estimator: Annotated[
        list[str] | None,
        typer.Option(
            "--estimator",
            "-e",
            help=f"Score with it first: {', '.join(_ESTIMATORS)}. May be repeated; all of them without --scores.",
        ),
    ] = None,
    samples: Annotated[str, typer.Option(help="loo: how many samples, or 'all'.")] = "200",
    weight: Annotated[
        float,
        typer.Option(
            help="loo, groups: what is left of the weight; 0 removes; 0.95 is nearly the derivative "
            "of smooth networks, 0.999 of those with kinks (ReLU)."
        ),
    ] = 0.0,
    orders: Annotated[
        int | None,
        typer.Option(help="0: this run, in its own order. K: mean over K other orders. By default 0; expected: 8."),
    ] = None,
    groups: Annotated[int, typer.Option(help="groups: how many.")] = 50,
    subsets: Annotated[int, typer.Option(help="lds: how many.")] = 100,
    fraction: Annotated[
        float | None, typer.Option(help="Of the training set: what a group has (0.02), or a subset keeps (0.5).")
    ] = None,
    processes: Annotated[int, typer.Option(help="Processes that train, each with one thread.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of samples, groups, subsets, orders and estimators.")] = 0,
    resume: Annotated[
        bool, typer.Option(help="Go on with an interrupted run; --no-resume replaces what is there.")
    ] = True,
    quiet: Quiet = False,
) -> None:
    """Hold scores against the truth: train again, and see what changes.

    There are two truths. This run: its own order and batches (`--orders 0`). Expected: the mean over other orders of the data
    (`--orders 8`), which is what counts if the model will be trained again.

    Examples: `diffin evaluate problem.py runs/a -o evaluations/a` leaves out 200 samples one by one, and compares all
    estimators. `diffin evaluate problem.py runs/a -o evaluations/b --truth expected --scores scores/a` holds given scores
    against the influence expected over 8 orders, the cheapest truth about all samples. `diffin evaluate problem.py runs/a -o
    evaluations/c --truth lds --subsets 200 --processes 4` trains on 200 halves.

    Killed, the same command goes on where it stopped.
    """
    from diffin.evaluation import agreement
    from diffin.report.agreement import Compared, noise, write_agreement

    asked = diffin.load_problem(problem)
    trajectory = trained(asked, run)
    names, count = _estimators(estimator, scores), None if samples == "all" else whole("--samples", samples)
    found = _opened(scores or [])
    for name in names:
        found.append(_scored(name, asked, trajectory, output / "scores" / name, seed, resume, quiet))
    names_used = [entry.name for entry in found]
    if len(set(names_used)) < len(names_used):
        raise DiffinError(f"two of the scores are called the same: {', '.join(names_used)}; rename a folder")
    actual = _truth(
        truth, asked, trajectory, samples=count, weight=weight, orders=orders, groups=groups, subsets=subsets,
        fraction=fraction, processes=processes, seed=seed, output=output / "truth", resume=resume, progress=not quiet,
    )  # fmt: skip
    compared = [
        Compared(entry.name, entry.influence, agreement(entry.influence, actual, seed=seed), entry.seconds)
        for entry in found
    ]
    write_run_file(output, "evaluate", {**context.params, "scores": [str(folder) for folder in scores or []]})
    _write(output, actual, compared)
    _print(actual, compared)
    console.print(noise(actual))
    page = write_agreement(actual, compared, output / "evaluation.html", extra={"seed": seed, **environment()})
    console.print(f"[bold]The page:[/] {page.resolve()}", soft_wrap=True)


@dataclass(frozen=True)
class _Scored:
    name: str
    influence: Any
    seconds: float | None


def _estimators(asked: list[str] | None, scores: list[Path] | None) -> list[str]:
    if not asked:
        return [] if scores else [name for name in _ESTIMATORS if name != "auto"]
    for name in asked:
        if name not in _ESTIMATORS:
            raise DiffinError(f"--estimator {name}: pass one of {', '.join(_ESTIMATORS)}")
    return list(dict.fromkeys(asked))


def _opened(folders: list[Path]) -> list[_Scored]:
    return [_Scored(folder.resolve().name, diffin.Scores.open(folder).influence, None) for folder in folders]


def _scored(
    name: str,
    asked: diffin.Problem,
    trajectory: diffin.Trajectory,
    folder: Path,
    seed: int,
    resume: bool,
    quiet: bool,
) -> _Scored:
    start, begun = time.perf_counter(), folder.exists()
    scores = diffin.score(
        asked.task, trajectory, asked.train, query=asked.query, collate=asked.collate,
        estimator=make_estimator(name, None, seed), output=folder, resume=resume, progress=not quiet,
    )  # fmt: skip
    # What is left of an interrupted run, or nothing at all, takes a time that says nothing.
    return _Scored(name, scores.influence, None if begun and resume else time.perf_counter() - start)


def _truth(
    kind: str,
    asked: diffin.Problem,
    trajectory: diffin.Trajectory,
    *,
    samples: int | None,
    weight: float,
    orders: int | None,
    groups: int,
    subsets: int,
    fraction: float | None,
    **options: Any,
) -> Truth:
    from diffin import evaluation

    if asked.query is None:
        raise DiffinError("the problem has no query, so there is no loss to compare with; add query= to its Problem")
    arguments = (asked.task, trajectory, asked.train, asked.query)
    options |= {"collate": asked.collate}
    if kind == "expected":
        return evaluation.expected_influence(*arguments, orders=_ORDERS if orders is None else orders, **options)
    options |= {"orders": orders or 0}
    match kind:
        case "loo":
            return evaluation.leave_one_out(*arguments, samples=samples, weight=weight, **options)
        case "groups":
            size = _GROUP if fraction is None else fraction
            return evaluation.leave_groups_out(*arguments, groups=groups, fraction=size, weight=weight, **options)
        case _:
            size = _SUBSET if fraction is None else fraction
            return evaluation.subsets(*arguments, count=subsets, fraction=size, **options)


def _write(output: Path, truth: Truth, compared: list[Compared]) -> None:
    content = {
        "truth": {
            "kind": truth.kind,
            "sentence": truth.sentence(),
            "order_seeds": list(truth.order_seeds),
            **{name: value for name, value in truth.metadata.items() if name != "identity"},
        },
        "estimators": {e.name: {**e.agreement.to_json(), "seconds": e.seconds} for e in compared},
        "environment": environment(),
    }
    write_json(output / "evaluation.json", content)


def _print(truth: Truth, compared: list[Compared]) -> None:
    from diffin.report.agreement import coefficient, interval

    table = Table(title=f"Agreement with the truth, {len(truth.groups):,} compared", title_justify="left")
    said = any(entry.agreement.note or entry.agreement.left_out for entry in compared)
    for heading in ("estimator", "Spearman", "95 %", "Pearson", "95 %", "seconds", *(["note"] if said else [])):
        table.add_column(heading, justify="left" if heading in ("estimator", "note") else "right")
    for entry in compared:
        found = entry.agreement
        left_out = f"{found.left_out:,} left out" if found.left_out else ""
        table.add_row(
            plain(entry.name),
            coefficient(found.spearman) or "-",
            interval(found.spearman_interval) or "-",
            coefficient(found.pearson) or "-",
            interval(found.pearson_interval) or "-",
            "-" if entry.seconds is None else f"{entry.seconds:,.1f}",
            *([plain(", ".join(filter(None, [found.note, left_out])))] if said else []),
        )
    console.print(table)
    console.print(truth.sentence())
