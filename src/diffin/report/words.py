"""The words of the page: what a sample did to a query, or to itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class End:
    """One end of the ranking, as the page shows it.

    Attributes:
        name: in the addresses of the page.
        colour: of its headings and numbers.
        title: over its samples.
        counted: what follows their number.
        called: of a single one.
        nobody: where there is none.
    """

    name: str
    colour: Literal["harm", "help", "plain"]
    title: str
    counted: str
    called: str
    nobody: str


@dataclass(frozen=True)
class Words:
    """How the page speaks of influence.

    Attributes:
        positive: the end of the largest influence.
        negative: the end of the smallest.
        sign: of the influence that the ranking begins with, 1 or -1.
        raises: what a positive term does, as a legend.
        lowers: what a negative term does.
        raise_: the same of many, as in "3% of the samples ...".
        lower: likewise.
        facts: over the numbers of samples of positive and of negative influence.
        first: how ranks are counted.
        tenth: the first tenth of the ranking.
        single: its first sample.
        question: what influence answers that a loss does not.
    """

    positive: End
    negative: End
    sign: int
    raises: str
    lowers: str
    raise_: str
    lower: str
    facts: tuple[str, str]
    first: str
    tenth: str
    single: str
    question: str


OF_A_QUERY = Words(
    positive=End("harmful", "harm", "Most harmful", "that harm", "most harmful", "No sample harms."),
    negative=End("helpful", "help", "Most helpful", "that help", "most helpful", "No sample helps."),
    sign=1,
    raises="harms",
    lowers="helps",
    raise_="harm",
    lower="help",
    facts=("Harm", "Help"),
    first="most harmful first",
    tenth="most harmful tenth",
    single="most harmful sample",
    question="what a sample does to the query",
)

OF_ITSELF = Words(
    positive=End("least", "plain", "Depend least on themselves", "in all", "depends least", "There are no others."),
    negative=End(
        "most", "help", "Depend most on themselves", "that lowered their own loss", "depends most",
        "No sample lowered its own loss.",
    ),
    sign=-1,
    raises="raises its own loss",
    lowers="lowers its own loss",
    raise_="raised their own loss",
    lower="lowered it",
    facts=("Raised their own loss", "Lowered their own loss"),
    first="most dependent on itself first",
    tenth="tenth that depends most on itself",
    single="sample that depends most on itself",
    question="what a sample owes to having been trained on",
)  # fmt: skip


def words_for(kind: str) -> Words:
    """The words for an estimator by the name it has in the metadata."""
    return OF_ITSELF if kind == "self-influence" else OF_A_QUERY
