"""``diffin filter``: the part of a scored corpus that is kept, by its scores alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import typer

import diffin
from diffin.cli.export import Apply, From, HardLink, LabelColumn, opened
from diffin.cli.terminal import console
from diffin.errors import DiffinError
from diffin.export import Chosen, export, subset_file
from diffin.files import write_atomically
from diffin.provenance import write_run_file
from diffin.scoring.columns import Floats
from diffin.sources import Indices

KEPT = "kept.parquet"


def filter_(
    context: typer.Context,
    scores: Annotated[Path, typer.Argument(metavar="SCORES", help="Folder that `diffin score` wrote.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the list of what is kept (Parquet).")],
    keep: Annotated[float, typer.Option("--keep", "-k", help="Share of the samples to keep.")],
    by: Annotated[
        Literal["influence", "loss"],
        typer.Option(help="Whose smallest values are kept: of influence, the samples that help most."),
    ] = "influence",
    subset: Annotated[
        Path | None,
        typer.Option(help="Also write the ids as a DataComp subset file (.npy); the keys have to be its uids."),
    ] = None,
    apply: Apply = None,
    source: From = None,
    label_column: LabelColumn = None,
    hard_link: HardLink = False,
) -> None:
    """Keep the samples of a corpus whose scores are best, without training again.

    Example: `diffin filter scores/a --keep 0.3 -o kept --subset kept.npy`. For corpora too large to train on more than once;
    `diffin select` trains on what it keeps, again and again, and is more accurate. Samples without a score are not kept.
    `--apply data/kept --from data/shards` writes the samples themselves, shard by shard.
    """
    if not 0 < keep <= 1:
        raise DiffinError(f"--keep {keep}: pass a share of the samples, above 0 and at most 1")
    found = diffin.Scores.open(scores)
    data = opened(len(found), apply, source, label_column, hard_link)
    keys = found.keys
    if subset is not None and keys is None:
        raise DiffinError("--subset: these samples have no ids of their own; score them from shards, with key='uid'")
    index, scored = kept(getattr(found, by), keep)
    output.mkdir(parents=True, exist_ok=True)
    _write(output / KEPT, index, keys)
    write_run_file(output, "filter", context.params)
    missing = len(found) - scored
    console.print(
        f"{len(index):,} of {len(found):,} samples kept by {by}"
        + (f"; {missing:,} have no score" if missing else "")
        + f" -> {output / KEPT}",
        soft_wrap=True,
    )
    if subset is not None and keys is not None:
        console.print(f"The subset file -> {subset_file([keys[i] for i in index.tolist()], subset)}", soft_wrap=True)
    if data is not None and apply is not None:
        export(data, apply, Chosen(len(found), index))
        console.print(f"The samples themselves -> {apply}", soft_wrap=True)


def kept(values: Floats, share: float) -> tuple[Indices, int]:
    """Positions of the smallest values, ascending, and how many of all are numbers. Of equal ones the first are kept.

    Args:
        values: Float64[ndarray, "N"]; NaN for a sample without a score.
        share: of N.

    Raises:
        DiffinError: there are not so many numbers.
    """
    scored = int(np.isfinite(values).sum())
    count = round(share * len(values))
    if not 0 < count <= scored:
        raise DiffinError(
            f"--keep {share:g}: that is {count:,} of {len(values):,} samples, of which {scored:,} have a score"
        )
    order = np.argsort(np.where(np.isfinite(values), values, np.inf), kind="stable")[:count]
    return np.sort(order).astype(np.int64), scored


def _write(path: Path, index: Indices, keys: list[str] | None) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"index": pa.array(index)}
    if keys is not None:
        columns["key"] = pa.array([keys[i] for i in index.tolist()], pa.string())
    with write_atomically(path) as part:
        pq.write_table(pa.table(columns), part)
