"""Samples that cannot be read: what stands in their place, and how they are left out of a batch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from diffin.batches import Batch
from diffin.errors import UnreadableError
from diffin.sources.base import Collate

_LONGEST = 300


@dataclass(frozen=True)
class Unreadable:
    """Stands where a sample would be that cannot be read.

    Attributes:
        reason: why, in one line.
    """

    reason: str


class Readable:
    """A collate function that leaves out what cannot be read, for a training that goes on without it.

    With :class:`diffin.sources.Indexed`, the batch then holds the indices of the samples that were used.

    Args:
        collate: makes a batch of the samples that are left, e.g. ``torch.utils.data.default_collate``.
    """

    def __init__(self, collate: Collate) -> None:
        self.collate = collate

    def __call__(self, samples: list[Any]) -> Batch:
        left, reasons = parted(samples)
        if not left:
            raise UnreadableError(f"no sample of a batch of {len(samples)} can be read; of the first: {reasons[0]}")
        return self.collate([samples[place] for place in left])


def parted(samples: Sequence[Any]) -> tuple[list[int], dict[int, str]]:
    """The places of the samples that can be read, and the reason at the place of each that cannot."""
    reasons = {place: sample.reason for place, sample in enumerate(samples) if isinstance(sample, Unreadable)}
    return [place for place in range(len(samples)) if place not in reasons], reasons


def reason_of(error: BaseException) -> str:
    """One line that says what an error says, and the same in every process."""
    lines = str(error).strip().splitlines()
    # Some errors show objects with where they lie in memory.
    line = re.sub(r" at 0x[0-9a-fA-F]+", "", lines[0]) if lines else ""
    told = line if isinstance(error, UnreadableError) else f"{type(error).__name__}: {line}"
    return told[:_LONGEST]
