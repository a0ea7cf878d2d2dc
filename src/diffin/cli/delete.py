"""``diffin delete``: a model that forgets some samples, and a certificate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import typer
from rich.table import Table

import diffin
from diffin import reading
from diffin.actions.checks import end_of
from diffin.actions.delete import Certificate, Deletion, Linearised
from diffin.actions.delete import delete as run_deletion
from diffin.actions.delete.deletion import CERTIFICATE, refuse_deletion
from diffin.cli.options import ProblemFile, Quiet, RunFolder, Seed, make_estimator, settings_option, trained
from diffin.cli.terminal import console, counted, number
from diffin.errors import DiffinError
from diffin.provenance import FILE_NAME as RUN_FILE
from diffin.provenance import environment, write_run_file
from diffin.sources import Indices
from diffin.sources.base import distinct_indices

PAGE = "certificate.html"


def delete(
    context: typer.Context,
    problem: ProblemFile,
    run: RunFolder,
    samples: Annotated[
        str,
        typer.Option(
            "--samples",
            help="Which to forget: indices such as 3,17,200-219, or a file of them (.txt, .npy, or the column index of a "
            ".parquet).",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the model, the certificate and the page.")],
    estimator: Annotated[
        Literal["linearised", "unrolled", "replay", "inverse-hessian"],
        typer.Option(
            "--estimator",
            "-e",
            help="linearised: the training of the network linearised along its path, with and without the samples; "
            "unrolled, replay: the derivative of the training; inverse-hessian: the influence function.",
        ),
    ] = "linearised",
    settings: Annotated[
        list[str] | None,
        settings_option(
            "A setting of the estimator, e.g. --set intervals=20 --set curvature_samples=none, or -e unrolled --set "
            "propagation=segments."
        ),
    ] = None,
    recovery_steps: Annotated[int, typer.Option(help="Training steps on the rest, afterwards.")] = 0,
    retrain: Annotated[bool, typer.Option("--retrain", help="Also train without the samples, and compare.")] = False,
    shadows: Annotated[
        int, typer.Option(help="Trainings for the population attack on membership; 8 or more to mean something.")
    ] = 0,
    force: Annotated[
        bool, typer.Option("--force", help="Write the model even if the change is too large for the estimate.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a deletion that is there already.")] = False,
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Forget samples without training again, and measure what came of it.

    Example: `diffin delete problem.py runs/a --samples 3,17,200-219 -o deleted/a --retrain`. The new model is
    deleted/a/model.safetensors, a plain state dict. The page shows losses, accuracies and attacks before and after; with
    `--retrain`, beside those of a model that never saw the samples. The problem's query is taken for the test set.

    A short training is better repeated, which is exact; deletion costs the same however long training was.
    """
    if output.exists() and not output.is_dir():
        raise DiffinError(f"--output {output} is a file; pass a folder")
    # Written last: a deletion without it is that of a run that was killed, and its page is made now.
    left = not overwrite and (output / CERTIFICATE).exists() and not (output / RUN_FILE).exists()
    if not (overwrite or left):
        refuse_deletion(output)
    asked = diffin.load_problem(problem)
    chosen, trajectory, made = read_samples(samples), trained(asked, run), _estimator(estimator, settings, seed)
    if left:
        found = Deletion.open(output)
        now = {"recovery_steps": recovery_steps, "shadows": shadows, "seed": seed, "run": end_of(trajectory)}
        _refuse_another(found, output, distinct_indices(chosen, None), made, retrain, now)
    else:
        found = run_deletion(
            asked.task, trajectory, asked.train, chosen, test=asked.query, collate=asked.collate, estimator=made,
            recovery_steps=recovery_steps, retrained=retrain, shadows=shadows, force=force, seed=seed, progress=not quiet,
        )  # fmt: skip
        (output / RUN_FILE).unlink(missing_ok=True)  # It is of another deletion, as is the page.
        (output / PAGE).unlink(missing_ok=True)
        found.save(output, overwrite=overwrite)
    _print(found.certificate)
    console.print(f"The model: {output / 'model.safetensors'}", soft_wrap=True)
    page = _write_page(found, output / PAGE, seed)
    console.print(f"[bold]The certificate:[/] {page.resolve()}", soft_wrap=True)
    write_run_file(output, "delete", context.params)


def _refuse_another(
    found: Deletion,
    output: Path,
    chosen: Indices,
    made: Linearised | diffin.Estimator | None,
    retrain: bool,
    now: dict[str, object],
) -> None:
    """Raise if the deletion that a killed run left is not the one that is asked for now."""
    there = found.certificate.settings
    made = made or Linearised()
    described = made.resolved(len(chosen) / there["dataset_size"]) if isinstance(made, Linearised) else made
    if (
        not np.array_equal(found.samples, chosen)
        or there["estimator"] != json.loads(json.dumps(described.describe()))
        or ("retrained" in found.certificate.models) != retrain
        or any(there.get(name) != value for name, value in now.items())
    ):
        raise DiffinError(
            f"--output {output} holds another deletion, without its page; pass --overwrite to replace it, or another"
        )


def read_samples(text: str) -> Indices:
    """Indices out of ``3,17,200-219``, or of a file: ``.npy``, ``.parquet`` with a column ``index``, or text.

    Raises:
        DiffinError: it is neither, or a range runs backwards.
    """
    path = Path(text)
    found: list[int] = []
    try:
        if path.suffix == ".npy":
            # Not made whole numbers of: that fractions or a mask are none is for `delete` to say.
            return reading.array(path)
        if path.suffix == ".parquet":
            import pyarrow as pa

            return np.asarray(reading.table(path, {"index": pa.int64()}).column("index").to_numpy())
        listed = path.read_text(encoding="utf-8") if _is_file(path) else text
        for part in listed.replace(",", " ").split():
            first, dash, last = part.partition("-")
            indices = range(int(first), int(last) + 1) if dash else [int(first)]
            if not indices:
                raise DiffinError(f"--samples {part}: the range holds nothing; pass the lower index first")
            found += indices
    except (OSError, EOFError, ValueError, KeyError):
        raise DiffinError(
            f"--samples {text[:80]}: neither indices such as 3,17,200-219 nor a file of them (.txt, .npy, .parquet with a "
            "column index) that can be read"
        ) from None
    return np.array(found, dtype=np.int64)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # A list of many indices is longer than the name of a file may be.
        return False


def _estimator(name: str, settings: list[str] | None, seed: int) -> Linearised | diffin.Estimator | None:
    if name != "linearised":
        return make_estimator(name, settings, seed)
    values: dict[str, int | None] = {"seed": seed}
    for setting in settings or ():
        key, _, text = setting.partition("=")
        if key not in Linearised.__dataclass_fields__ or not (text.isdecimal() or text == "none"):
            raise DiffinError(
                f"--set {setting}: the settings of linearised are intervals, curvature_samples (either may be none), "
                "iterations, polish and seed, whole numbers"
            )
        values[key] = None if text == "none" else int(text)
    return Linearised(**values)  # type: ignore[arg-type]


def _print(certificate: Certificate) -> None:
    names = list(certificate.models)
    table = Table(title=f"{counted(certificate.settings['samples'], 'sample')} forgotten", title_justify="left")
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right")
    models = certificate.models.values()
    for which in certificate.models["original"].on:
        table.add_row(f"loss, {which}", *(number(m.on[which].loss, ".3f") for m in models))
        if certificate.models["original"].on[which].accuracy is not None:
            table.add_row(f"accuracy, {which}", *(number(m.on[which].accuracy, ".1%") for m in models))
    for label, field in (
        ("attack by loss, AUC", "threshold_attack"),
        ("attack by population, AUC", "population_attack"),
    ):
        values = [getattr(m, field) for m in models]
        if any(value is not None for value in values):
            table.add_row(label, *(number(value, ".3f") for value in values))
    console.print(table)
    closed = certificate.models["deleted"].gap_closed
    if closed is not None:
        console.print(f"{closed:.0%} of the loss between the original and the retrained model is closed.")
    took = ", ".join(f"{name} {seconds:,.1f} s" for name, seconds in certificate.seconds.items())
    console.print(f"Time: {took}.")
    if not certificate.regime["holds"]:
        console.print("[bold red]The change is too large for the estimate; the model is broken.[/]")


def _write_page(found: Deletion, path: Path, seed: int) -> Path:
    from diffin.report.certificate import write_certificate

    return write_certificate(found, path, extra={"seed": seed, **environment()})
