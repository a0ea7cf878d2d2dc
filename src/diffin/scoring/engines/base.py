"""What an engine is: it has every missing part of some scores measured and written, by whatever processes it has.

A part is the rows of a fixed range of positions. Its bytes depend on the manifest alone, and its file is whole or absent; so
it does not matter who measures a part, nor how often, nor who dies doing so: every sample has one row, and always the same.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar

import torch

from diffin.errors import ScoringError
from diffin.parallel import ALONE, Ranks
from diffin.probes import ProbeSet
from diffin.scoring.manifest import Manifest
from diffin.scoring.measuring import Measuring
from diffin.scoring.plan import Plan, Settings, go_on
from diffin.scoring.sink import FolderParts, Parts
from diffin.sources import Collate, Source
from diffin.task import Task

Positions = tuple[int, int | None]
"""First position and end of some consecutive parts; ``None`` for the end of a source of unknown length."""

_SHARES = 4
_MOST_AT_ONCE = 16
_PATIENCE = 60.0
"""Seconds that a shared file system may take to show what was written elsewhere."""


@dataclass(frozen=True)
class Job:
    """What is to be measured.

    Attributes:
        task: model and loss.
        probes: what to measure.
        dataset: as the caller has given it.
        collate: the same.
        workers: processes that read the data for each process that measures.
        source: the dataset, opened.
        settings: what the caller asked for.
        manifest: what was made of that; the same in every process.
        parts: where the parts go.
        missing: the ranges of positions that are not there, ascending.
        progress: whether to show a bar.
        ranks: the processes that came here.
        planned: the plan, where this process has made it.
    """

    task: Task
    probes: ProbeSet
    dataset: Any
    collate: Collate | None
    workers: int
    source: Source
    settings: Settings
    manifest: Manifest
    parts: Parts
    missing: Sequence[Positions]
    progress: bool
    ranks: Ranks = ALONE
    planned: Plan | None = None

    @property
    def samples(self) -> int | None:
        """How many samples are to be measured, if that is known."""
        if self.manifest.length is None:
            return None
        return sum((stop or 0) - start for start, stop in self.missing)

    def measuring(self) -> Measuring:
        """What measures, made anew where this process did not plan."""
        plan = self.planned or go_on(self.task, self.probes, self.settings, self.manifest)
        return Measuring(plan.engine, self.source, self.manifest)


class ScoringEngine(ABC):
    """Who measures the parts of scores. Scores, to the byte, do not depend on it."""

    name: ClassVar[str]

    @property
    def speaks(self) -> bool:
        """Whether this process is the one to print what was found."""
        return True

    def ranks(self, device: torch.device) -> AbstractContextManager[Ranks]:
        """The processes that run the caller's program side by side."""
        del device
        return nullcontext(ALONE)

    def check(self, source: Source, output: str | Path | None) -> None:
        """Refuse what this engine cannot do.

        Raises:
            ScoringError: saying what to pass instead.
        """
        del source, output

    @abstractmethod
    def measure(self, job: Job) -> None:
        """Have every missing part written; returns when they are.

        Raises:
            DiffinError: a process has failed; what is written stays.
        """


def check_shareable(name: str, source: Source, output: str | Path | None) -> None:
    """Refuse what several processes cannot work on.

    Raises:
        ScoringError: saying what to pass instead.
    """
    if output is None:
        raise ScoringError(
            f"engine={name!r}: pass output=, a folder that every process can write, on a file system that all machines share"
        )
    if source.length is None or not source.random_access:
        raise ScoringError(
            f"engine={name!r} needs a dataset that gives any sample by its position (__getitem__ and __len__); this one can "
            "only be read from its start: pass engine='local'"
        )


def handed_out(missing: Sequence[Positions], part_rows: int, workers: int) -> list[tuple[int, int]]:
    """Ranges of positions to be measured one after another by whoever is free.

    Several parts at once at first, because a range is begun at some cost (processes that read ahead are started), and one
    by one in the end, so that all workers end together.
    """
    found = []
    left = sum(-(-((stop or 0) - start) // part_rows) for start, stop in missing)
    for start, stop in missing:
        assert stop is not None  # of a source of known length
        while start < stop:
            count = max(1, min(_MOST_AT_ONCE, left // (_SHARES * workers)))
            end = min(stop, start + count * part_rows)
            found.append((start, end))
            left -= -(-(end - start) // part_rows)
            start = end
    return found


def write_parts(
    measuring: Measuring, parts: FolderParts, start: int, stop: int, advance: Callable[[int], None]
) -> Iterator[int]:
    """Measure the parts of a range that nobody has written, and write them. Yields the number of each.

    Raises:
        ScoringError: the folder does not hold these scores.
    """
    size = measuring.manifest.part_rows
    absent = []
    for first in range(start, stop, size):
        if parts.has(first // size):  # by a process that died before it could tell
            advance(min(first + size, stop) - first)
        else:
            absent.append(first // size)
    for _, run in groupby(enumerate(absent), lambda numbered: numbered[1] - numbered[0]):
        numbers = [number for _, number in run]
        for number, table in measuring.parts(numbers[0] * size, min((numbers[-1] + 1) * size, stop), advance):
            check_own(parts, measuring.manifest)
            parts.write(number, table)
            yield number


def check_own(parts: FolderParts, manifest: Manifest) -> None:
    """Refuse to write into a folder that is not, or no longer, that of these scores.

    Raises:
        ScoringError: the manifest there is another one, or there is none.
    """
    there = parts.manifest()
    if there is None:
        raise ScoringError(
            f"output={str(parts.path)!r} holds no manifest as seen from here, so it is not the folder that the scores are "
            "gathered in; pass a folder on a file system that all machines share"
        )
    differences = there.differences(manifest)
    if differences:
        raise ScoringError(
            f"output={str(parts.path)!r} was taken over by another scoring ({'; '.join(differences)}); pass another output"
        )


def await_parts(parts: FolderParts, manifest: Manifest, patience: float = _PATIENCE) -> None:
    """Wait until all parts can be seen, which on a network's file system may take some seconds.

    Raises:
        ScoringError: they cannot.
    """
    assert manifest.length is not None  # check_shareable has refused by now
    expected = range(-(-manifest.length // manifest.part_rows))
    end = time.monotonic() + patience
    while missing := [number for number in expected if not parts.has(number)]:
        if time.monotonic() > end:
            raise ScoringError(
                f"{len(missing)} parts that were written (number {missing[0]} first) cannot be seen in {str(parts.path)!r}; "
                "is it on a file system that all machines share? Score again with the same output to go on"
            )
        time.sleep(0.2)
