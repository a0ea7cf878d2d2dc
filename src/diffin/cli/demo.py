"""``diffin demo``: what a new user sees first."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

import diffin
from diffin.cli.options import Quiet
from diffin.cli.terminal import console, timed
from diffin.errors import DiffinError
from diffin.progress import phase
from diffin.provenance import environment, read_command, write_run_file

_ORDERS = 2
_LOSS = "mean loss of the sample"


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for everything the demo leaves.")] = Path(
        "diffin-demo"
    ),
    seed: Annotated[int, typer.Option(help="Seed of data, model and training.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Train on digits of which a tenth are mislabelled, and find out which samples harmed. About a minute.

    Then the scores are held against the truth. Leaves the recorded run, the scores and two pages in the output folder.
    """
    import torch

    from diffin import demo as example
    from diffin.evaluation import agreement, expected_influence
    from diffin.report import write_report
    from diffin.report.agreement import Compared, write_agreement

    # Kernels this small only wait for each other on more threads.
    torch.set_num_threads(1)

    run, scores_folder, page = output / "run", output / "scores", output / "report.html"
    truth_page = output / "evaluation.html"
    if output.exists() and any(output.iterdir()) and read_command(output) != "demo":
        raise DiffinError(f"--output {output}: the folder holds something other than an earlier demo; pass another one")
    write_run_file(output, "demo", {"output": output, "seed": seed})
    shutil.rmtree(run, ignore_errors=True)
    with timed("Loading 5,000 handwritten digits (MNIST)"):
        data = example.load(seed)
    flags = data.flipped
    console.print(
        f"  {len(data.train):,} to train on, {flags.sum()} of them mislabelled on purpose; "
        f"{len(data.query)} clean ones to ask about"
    )
    model = example.build_model(seed)
    with timed(f"Training a small CNN for {example.EPOCHS} epochs, recorded") as done:
        with phase("training", example.EPOCHS, show=not quiet) as bar:
            example.train(model, data, run, seed=seed, after_epoch=bar.advance)
        done.append(f"accuracy on the clean digits {example.accuracy(model, data.query):.1%}")
    trajectory = diffin.Trajectory.open(run)
    task = diffin.tasks.Classification(model)
    estimators: dict[str, diffin.Estimator] = {
        "Unrolled": diffin.Unrolled(),
        "DiffIn": diffin.DiffIn(),
        "TracIn": diffin.TracIn(),
    }
    results, seconds = {}, {}
    for name, estimator in estimators.items():
        with timed(f"Scoring every sample with {name}") as done:
            start = time.perf_counter()
            results[name] = diffin.score(
                task, trajectory, data.train, query=data.query, estimator=estimator,
                output=scores_folder / name.lower(), resume=False, progress=not quiet,
            )  # fmt: skip
            seconds[name] = time.perf_counter() - start
            check = results[name].metadata["self_check"]
            done.append(f"derivatives by '{check['chosen']}', self-check error {_chosen(check)['error']:.1g}")
    scores = results["Unrolled"]
    final = trajectory.final
    with timed(f"Replaying the training in {_ORDERS} other orders of the data, for the exact influence") as done:
        truth = expected_influence(
            task, trajectory, data.train, data.query, orders=_ORDERS, seed=seed, output=output / "truth", resume=False,
            progress=not quiet,
        )  # fmt: skip
        rankings = {name: result.influence for name, result in results.items()} | {_LOSS: scores.loss}
        agreements = {name: agreement(ranking, truth, seed=seed) for name, ranking in rankings.items()}
        done.append(f"two such truths agree to {agreements['Unrolled'].ceiling or 0:.2f} (Spearman)")
    with timed("Writing the pages"):
        extra = {"seed": seed, **environment()}
        write_report(
            scores, page, problem=diffin.Problem(task, data.train, data.query), state=None if final is None else final.state,
            flagged=flags.nonzero()[0].tolist(), flagged_as="mislabelled", title="Which digits harmed?", extra=extra,
        )  # fmt: skip
        compared = [Compared(name, rankings[name], agreements[name], seconds.get(name)) for name in rankings]
        write_agreement(truth, compared, truth_page, extra=extra)

    worst = Table(title="Most harmful by Unrolled", title_justify="left")
    for heading in ("sample", "labelled", "truly", "influence"):
        worst.add_column(heading, justify="right")
    for index in scores.most_harmful(10):
        label, correct = int(data.train.tensors[1][index]), int(data.truth[index])
        mark = f"[red]{correct}[/]" if label != correct else f"{correct}"
        worst.add_row(str(index), str(label), mark, f"{scores.influence[index]:+.2e}")
    console.print(worst)
    table = Table(title=f"Agreement with the truth, and the {flags.sum()} mislabelled digits", title_justify="left")
    for heading in ("ranking", "agrees (Spearman)", "found in the first 10 %", "20 %"):
        table.add_column(heading, justify="left" if heading == "ranking" else "right")
    for name, ranking in rankings.items():
        table.add_row(
            name, f"{agreements[name].spearman or 0:.2f}", f"{example.found(ranking, flags, 0.1):.0%}",
            f"{example.found(ranking, flags, 0.2):.0%}",
        )  # fmt: skip
    table.add_row("at random", "0.00", "10%", "20%")
    console.print(table)
    console.print(f"{truth.sentence()}\n")
    console.print(f"[bold]The page:[/] {page.resolve()}", soft_wrap=True)
    console.print(f"[bold]Against the truth:[/] {truth_page.resolve()}", soft_wrap=True)


def _chosen(check: dict[str, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = next(entry for entry in check["back_ends"] if entry["name"] == check["chosen"])
    return entry
