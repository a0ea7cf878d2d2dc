"""Reading the samples of a map-style data set at some positions, many at once where it can."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Subset

from diffin.batches import Batch
from diffin.errors import UnreadableError
from diffin.sources.base import Collate, Indices
from diffin.sources.indexed import Indexed, with_index
from diffin.sources.keyed import Keyed
from diffin.sources.kinds import is_hugging_face
from diffin.sources.stored import Stored
from diffin.sources.unreadable import Unreadable, parted

Before = Callable[[int], None]


class Read(NamedTuple):
    """A batch, and what is missing in it.

    Attributes:
        places: Int64[ndarray, "B"], which of those that were asked for were read.
        indices: Int64[ndarray, "B"], of the samples that were read.
        batch: of these; ``None`` if there are none.
        failures: why each other sample that was asked for cannot be read, by its index.
    """

    places: Indices
    indices: Indices
    batch: Batch
    failures: dict[int, str]


def collated(indices: Indices, samples: list[Any], collate: Collate) -> Read:
    """A batch of the samples at ``indices`` that could be read."""
    left, reasons = parted(samples)
    places = np.array(left, dtype=np.int64)
    if not reasons:
        return Read(places, indices, collate(samples), {})
    batch = collate([samples[place] for place in left]) if left else None
    return Read(places, indices[places], batch, {int(indices[place]): reason for place, reason in reasons.items()})


def read_items(dataset: Any, positions: Sequence[int], before: Before) -> list[Any]:
    """The samples at ``positions``, in that order; an :class:`Unreadable` in place of each that cannot be read.

    Args:
        dataset: map-style. One with ``__getitems__`` gives many at once; what it gives at a position must not depend on
            the other positions, and it must not draw random numbers.
        positions: into it.
        before: called with a place in ``positions`` before what is random about the sample there is drawn.
    """
    if isinstance(dataset, Stored) and _own(dataset, Stored):
        return dataset.items(positions, before)
    if type(dataset) is Keyed:
        return read_items(dataset.dataset, positions, before)
    if type(dataset) is Indexed:
        items = read_items(dataset.dataset, positions, before)
        return [with_index(*both) for both in zip(items, positions, strict=True)]
    if type(dataset) is Subset:
        return read_items(dataset.dataset, [dataset.indices[position] for position in positions], before)
    if _at_once(dataset):
        before(0)
        return list(dataset.__getitems__(list(positions)))
    return [_one(dataset, position, place, before) for place, position in enumerate(positions)]


def _one(dataset: Any, position: int, place: int, before: Before) -> Any:
    before(place)
    try:
        return dataset[position]
    except UnreadableError as error:
        return Unreadable(error.reason)
    except Exception as error:
        error.add_note(f"diffin was reading sample {position} of the dataset")
        raise


def _at_once(dataset: Any) -> bool:
    if is_hugging_face(dataset):
        # A column store reads many rows at once far faster than one by one; only a custom transform can be random.
        return bool(dataset.format["type"] != "custom")
    of = next((kind for kind in type(dataset).__mro__ if "__getitems__" in vars(kind)), None)
    return of is not None and _own(dataset, of)


def _own(dataset: Any, kind: type) -> bool:
    """Whether reading one sample is not overridden below the class that reads many."""
    of = next((base for base in type(dataset).__mro__ if "__getitem__" in vars(base)), None)
    return of is None or not (issubclass(of, kind) and of is not kind)
