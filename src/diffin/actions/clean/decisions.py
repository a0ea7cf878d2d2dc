"""What a person decided on the review page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeGuard, cast, get_args

from diffin.errors import DatasetError
from diffin.files import read_json

FORMAT = 1
KIND = "diffin-decisions"

Verdict = Literal["relabel", "drop", "keep"]


@dataclass(frozen=True)
class Decision:
    """About one sample.

    Attributes:
        index: position in the training set.
        given: the class it was labelled as when it was reviewed.
        verdict: ``"relabel"``, ``"drop"`` (wrong, and no class fits), or ``"keep"`` (the label is right).
        label: the new class of one to relabel; ``None`` otherwise.
    """

    index: int
    given: int
    verdict: Verdict
    label: int | None = None


def read_decisions(path: str | Path, *, labels: Sequence[int], classes: int) -> list[Decision]:
    """Read what the review page exported, checked against the labels that it was about.

    Args:
        path: the file.
        labels: the given labels of the training set.
        classes: how many there are.

    Raises:
        DatasetError: the file is none of the review page, or is about other data.
    """
    path = Path(path)
    try:
        content = read_json(path)
    except FileNotFoundError:
        raise DatasetError(f"there is no file {path}; export it on the review page") from None
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path} cannot be read as JSON ({error}); export it again on the review page") from None
    if content.get("kind") != KIND or content.get("format") != FORMAT:
        raise DatasetError(f"{path} holds no decisions of format {FORMAT}; export it on the review page")
    entries = content.get("decisions")
    if content.get("samples") != len(labels) or not isinstance(entries, list):
        raise DatasetError(
            f"{path} is about a training set of {content.get('samples')} samples, and this one has {len(labels)}; pass the "
            "decisions about this one"
        )
    decisions = [_decision(path, entry, labels, classes) for entry in entries]
    if len({decision.index for decision in decisions}) < len(decisions):
        raise DatasetError(f"{path} decides about a sample twice; export it again on the review page")
    return decisions


def _decision(path: Path, entry: Any, labels: Sequence[int], classes: int) -> Decision:
    index, given, verdict, label = (
        entry.get(key) if isinstance(entry, dict) else None for key in ("index", "given", "decision", "label")
    )
    relabels = verdict == "relabel"
    if (
        not (_below(index, len(labels)) and _below(given, classes) and verdict in get_args(Verdict))
        or relabels != (label is not None)
        or (relabels and not _below(label, classes))
    ):
        raise DatasetError(
            f"{path} holds something that is no decision, {repr(entry)[:200]}; export it on the review page"
        )
    if int(labels[index]) != given:
        raise DatasetError(
            f"{path} was made when sample {index} was labelled {given}, and now it is {int(labels[index])}; review again"
        )
    return Decision(index, given, cast(Verdict, verdict), label)


def _below(value: Any, end: int) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < end
