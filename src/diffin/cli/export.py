"""The options of writing what is left of a training set, for the commands that say what is left."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import diffin
from diffin.errors import DiffinError
from diffin.export import Data, check_destination, open_data
from diffin.sources import open_source

Apply = Annotated[
    Path | None,
    typer.Option(
        metavar="DEST",
        help="Also write what is left of the data of --from into this new folder, in the form that they have.",
    ),
]
From = Annotated[
    list[Path] | None,
    typer.Option(
        "--from",
        metavar="SOURCE",
        help="The data on disk that the problem trains on, in its order: a folder with a folder of images for each class, a "
        "Hugging Face dataset of save_to_disk, .parquet files or .tar shards of WebDataset (a folder of them, or repeated).",
    ),
]
LabelColumn = Annotated[
    str | None,
    typer.Option(
        help="Where the data have the label: a column, of shards cls or a key of the json member. By default the only column "
        "of classes, label, labels or cls."
    ),
]
HardLink = Annotated[
    bool, typer.Option("--hard-link", help="Of images: link instead of copying, where the file system can.")
]


def opened(
    size: int | None, apply: Path | None, source: list[Path] | None, label_column: str | None, link: bool
) -> Data | None:
    """The data to write a part of, checked before anything is computed; ``None`` if nothing is to be written.

    Args:
        size: how many samples they should hold; ``None`` if that is not known.
        apply: where to write.
        source: where they are.
        label_column: see :func:`diffin.export.open_data`.
        link: see there.

    Raises:
        DiffinError: they are other data, or cannot be written there.
    """
    if apply is None:
        if source or label_column is not None or link:
            raise DiffinError(
                "--from, --label-column and --hard-link are of --apply; say where to write, or leave them out"
            )
        return None
    if not source:
        raise DiffinError(f"--apply {apply}: say with --from where the data are that the problem trains on")
    data = open_data(source, label_column=label_column, link=link)
    check_destination(data, apply)
    if size is not None and size != data.size:
        raise DiffinError(
            f"--from {source[0]} holds {data.size:,} samples, and not the {size:,} that are chosen from; pass the data that "
            "was trained on, all of them and nothing else"
        )
    return data


def length_of(asked: diffin.Problem) -> int | None:
    """How many samples the problem trains on, if that is known."""
    return open_source(asked.train, collate=asked.collate).length
