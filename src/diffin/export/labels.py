"""Which label on disk is which class: learned from the samples, which also tells other samples from the ones scored."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from diffin.errors import DatasetError
from diffin.export.chosen import Chosen
from diffin.export.data import Data


def new_labels(data: Data, chosen: Chosen) -> dict[int, Any]:
    """The label to write for each sample that gets another, as the data would have it.

    Samples of one label must have been of one class when they were scored; otherwise these are other data, or in another
    order.

    Raises:
        DatasetError: they are, or a class cannot be written.
    """
    relabelled = chosen.relabelled
    if chosen.given is None:
        return {}
    if data.label is None:
        if relabelled:
            raise DatasetError(f"{data.where} has no column of labels that is known; name it with label_column")
        return {}
    classes = _classes(data, chosen.given.tolist())
    return {position: _written(data, classes, number) for position, number in relabelled.items()}


def _classes(data: Data, given: list[int]) -> dict[Hashable, int]:
    classes: dict[Hashable, int] = {}
    for position, (label, number) in enumerate(zip(data.labels(), given, strict=True)):
        if not isinstance(label, Hashable):
            raise DatasetError(f"{data.label} of {data.where} holds {type(label).__name__}s; pass a column of classes")
        if classes.setdefault(label, number) != number:
            raise DatasetError(
                f"sample {position} is {label!r} in {data.where} and was scored as class {number}, others that are {label!r} "
                f"as class {classes[label]}: these are other data, in another order, or {data.label} is not the label; pass "
                "what the problem trains on, unchanged"
            )
    return classes


def _written(data: Data, classes: dict[Hashable, int], number: int) -> Any:
    found = [label for label, of in classes.items() if of == number]
    if len(found) == 1:
        return found[0]
    if found:
        raise DatasetError(
            f"class {number} is written {', '.join(map(repr, found[:3]))} in {data.where}, so which to write for a new one "
            "is open; leave it out instead of relabelling it"
        )
    usual = data.label_of(number)
    if usual is None or any(data.label_of(of) != label for label, of in classes.items()):
        raise DatasetError(
            f"no sample of {data.where} is of class {number}, so how to write it is not known; leave it out"
        )
    return usual
