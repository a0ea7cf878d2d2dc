"""Measuring in the processes that ``torchrun`` has started, on one machine or several."""

from __future__ import annotations

import os
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from diffin.errors import ScoringError
from diffin.parallel import Ranks, local_rank, ranks_of_torchrun
from diffin.progress import Phase, phase
from diffin.sample import Sample
from diffin.scoring.engines.base import Job, ScoringEngine, await_parts, check_shareable, handed_out, write_parts
from diffin.scoring.sink import FolderParts
from diffin.sources import Source
from diffin.task import frozen

_TELL = 0.5
"""Seconds between two reports of a process about what it has measured."""


@dataclass(frozen=True)
class Torchrun(ScoringEngine):
    """All processes of ``torchrun``, each of which makes the same call: ``torchrun --nproc_per_node=4 script.py``.

    Parts are handed out one after another to whoever is free, so a slow machine takes fewer. Every process reads the data
    set for itself, has the model on a device of its own (``cuda:LOCAL_RANK``), and returns the same scores. A process that
    fails ends the others, with its message.
    """

    name: ClassVar[str] = "torchrun"

    @property
    def speaks(self) -> bool:
        return os.environ.get("RANK", "0") == "0"

    def ranks(self, device: torch.device) -> AbstractContextManager[Ranks]:
        return ranks_of_torchrun(device)

    def check(self, source: Source, output: str | Path | None) -> None:
        check_shareable(self.name, source, output)

    def measure(self, job: Job) -> None:
        assert isinstance(job.parts, FolderParts)  # check has refused by now
        ranks, size = job.ranks, job.manifest.part_rows
        if ranks.rank and Sample.of(job.source).digest() != job.manifest.sample:
            raise ScoringError(
                "the dataset of this process is not that of rank 0; have every process open the same data, in the same order"
            )
        ranges = handed_out(job.missing, size, ranks.count)
        measuring = job.measuring()
        with phase("scoring", job.samples, show=job.progress and ranks.rank == 0) as bar, frozen(job.task.model):
            told = _Told(ranks, bar)
            while (turn := ranks.add("ranges", 1)) <= len(ranges):
                for _ in write_parts(measuring, job.parts, *ranges[turn - 1], told.advance):
                    ranks.check()
                told.tell()
                ranks.add("finished", 1)
            ranks.wait(lambda: told.all_finished(len(ranges)))
        if ranks.rank == 0:
            await_parts(job.parts, job.manifest)


class _Told:
    """How many samples all processes have measured, as far as they have told, on a bar."""

    def __init__(self, ranks: Ranks, bar: Phase) -> None:
        self._ranks, self._bar = ranks, bar
        self._own = self._shown = 0
        self._last = time.monotonic()

    def advance(self, amount: int) -> None:
        self._own += amount
        if time.monotonic() - self._last >= _TELL:
            self.tell()

    def tell(self) -> None:
        self._ranks.check()
        total = self._ranks.add("measured", self._own)
        self._bar.advance(total - self._shown)
        self._own, self._shown, self._last = 0, total, time.monotonic()

    def all_finished(self, ranges: int) -> bool:
        self.tell()
        return self._ranks.add("finished", 0) == ranges


def use_own_device() -> None:
    """Make the GPU of this process the one that ``"cuda"`` means, before a model is put there."""
    own = local_rank()
    if own is not None and torch.cuda.is_available():
        torch.cuda.set_device(own % torch.cuda.device_count())
