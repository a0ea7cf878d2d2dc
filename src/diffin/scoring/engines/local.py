"""Measuring in this process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from diffin.progress import phase
from diffin.scoring.engines.base import Job, ScoringEngine
from diffin.task import frozen


@dataclass(frozen=True)
class Local(ScoringEngine):
    """This process, on the device of the model."""

    name: ClassVar[str] = "local"

    def measure(self, job: Job) -> None:
        measuring = job.measuring()
        with phase("scoring", job.samples, show=job.progress) as bar, frozen(job.task.model):
            for start, stop in job.missing:
                for number, table in measuring.parts(start, stop, bar.advance):
                    job.parts.write(number, table)
