"""``diffin demo``: what a new user sees first."""

from __future__ import annotations

import shutil
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
    estimators: dict[str, diffin.Estimator] = {"DiffIn": diffin.DiffIn(), "TracIn": diffin.TracIn()}
    results = {}
    for name, estimator in estimators.items():
        with timed(f"Scoring every sample with {name}") as done:
            results[name] = diffin.score(
                task, trajectory, data.train, query=data.query, estimator=estimator,
                output=scores_folder / name.lower(), resume=False, progress=not quiet,
            )  # fmt: skip
            check = results[name].metadata["self_check"]
            done.append(f"derivatives by '{check['chosen']}', self-check error {_chosen(check)['error']:.1g}")
    scores = results["DiffIn"]
    final = trajectory.final
    with timed("Writing the page"):
        write_report(
            scores, page, problem=diffin.Problem(task, data.train, data.query), state=None if final is None else final.state,
            flagged=flags.nonzero()[0].tolist(), flagged_as="mislabelled", title="Which digits harmed?",
            extra={"seed": seed, **environment()},
        )  # fmt: skip

    worst = Table(title="Most harmful by DiffIn", title_justify="left")
    for heading in ("sample", "labelled", "truly", "influence", "standard error"):
        worst.add_column(heading, justify="right")
    for index in scores.most_harmful(10):
        label, truth = int(data.train.tensors[1][index]), int(data.truth[index])
        mark = f"[red]{truth}[/]" if label != truth else f"{truth}"
        worst.add_row(
            str(index), str(label), mark, f"{scores.influence[index]:+.2e}", f"{scores.standard_error[index]:.1e}"
        )
    console.print(worst)
    table = Table(title=f"Of the {flags.sum()} mislabelled digits, found", title_justify="left")
    for heading in ("ranking", "in the first 10 %", "in the first 20 %"):
        table.add_column(heading, justify="left" if heading == "ranking" else "right")
    rankings = {f"influence, {name}": result.influence for name, result in results.items()}
    rankings["mean loss of the sample"] = scores.loss
    for name, ranking in rankings.items():
        table.add_row(name, f"{example.found(ranking, flags, 0.1):.0%}", f"{example.found(ranking, flags, 0.2):.0%}")
    table.add_row("at random", "10%", "20%")
    console.print(table)
    console.print(f"{scores.stability.sentence()}\n")
    console.print(f"[bold]The page:[/] {page.resolve()}", soft_wrap=True)


def _chosen(check: dict[str, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = next(entry for entry in check["back_ends"] if entry["name"] == check["chosen"])
    return entry
