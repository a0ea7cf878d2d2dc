"""From a short measured run to what scoring millions of samples on other machines will take.

Scoring is a map: every sample is read once and measured at every state, whichever process does it. So its time is the
time of a sample times the number of samples, divided among the processes, and nothing in it grows faster than the
number of samples. What does not divide is said apart: the start of each process, and the probes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from diffin.diagnose import Diagnosis
from diffin.errors import DiffinError
from diffin.scoring.columns import names

_START_SECONDS = 15.0
_NUMBER_BYTES = 8


@dataclass(frozen=True)
class Machines:
    """What will score.

    Attributes:
        count: of the machines.
        processes: on each, with a core (or a GPU) of their own.
        speed: of one process over that of the machine where :func:`diffin.diagnose` ran: 1 for the same kind.
        price: of a machine, an hour, in any currency; ``None`` if it does not matter.

    Raises:
        DiffinError: a number makes no sense.
    """

    count: int = 1
    processes: int = 1
    speed: float = 1.0
    price: float | None = None

    def __post_init__(self) -> None:
        for name, least in (("count", 1), ("processes", 1)):
            if getattr(self, name) < least:
                raise DiffinError(f"Machines({name}={getattr(self, name)}): pass {least} or more")
        if not self.speed > 0:
            raise DiffinError(f"Machines(speed={self.speed}): pass a positive number")
        if self.price is not None and not self.price >= 0:
            raise DiffinError(f"Machines(price={self.price}): pass 0 or more")

    @property
    def workers(self) -> int:
        """Processes in all."""
        return self.count * self.processes


@dataclass(frozen=True)
class Plan:
    """What it will take. Seconds are wall-clock, bytes are bytes.

    Attributes:
        samples: N.
        states: at which each is measured.
        machines: that do it.
        probe_seconds: to build the probes, on one process.
        scoring_seconds: to read and measure all samples.
        start_seconds: until the processes are at work.
        machine_hours: of all machines together, from the first probe to the last row.
        cost: of those hours; ``None`` without a price.
        process_bytes: memory of a process.
        probe_bytes: of the probes on disk; every process reads them once.
        score_bytes: of the scores on disk, at most: they are compressed.
        read_bytes: of the data, read once; ``None`` if it is unknown how large a sample is on disk.
        read_rate: bytes a second that the storage has to deliver, data and probes; ``None`` where ``read_bytes`` is.
    """

    samples: int
    states: int
    machines: Machines
    probe_seconds: float
    scoring_seconds: float
    start_seconds: float
    machine_hours: float
    cost: float | None
    process_bytes: int
    probe_bytes: int
    score_bytes: int
    read_bytes: int | None
    read_rate: float | None

    @property
    def seconds(self) -> float:
        """From start to end."""
        return self.probe_seconds + self.start_seconds + self.scoring_seconds


def plan(
    diagnosis: Diagnosis,
    samples: int | None = None,
    *,
    machines: Machines | None = None,
    sample_bytes: float | None = None,
) -> Plan:
    """What scoring ``samples`` samples will take on other machines.

    The probes are those of the recorded training, on one process. Samples are taken to be as expensive as those that were
    measured, and storage to keep up: compare :attr:`Plan.read_rate` with what yours delivers.

    Args:
        diagnosis: of :func:`diffin.diagnose`, on one process of the kind that will score.
        samples: N; ``None`` for those of the training set.
        machines: that will score; ``None`` for this process alone.
        sample_bytes: of one sample where it is stored.

    Raises:
        DiffinError: the number of samples is unknown or makes no sense, or the estimator has no probes.
    """
    forecast = diagnosis.forecast
    machines = machines or Machines()
    count = forecast.samples if samples is None else samples
    if count is None or count < 1:
        raise DiffinError(f"samples={samples}: pass the number of samples to plan for")
    if not forecast.checkpoints:
        raise DiffinError(
            f"{diagnosis.estimator} walks through the training and measures nothing after it; no plan is needed"
        )
    if sample_bytes is not None and not sample_bytes > 0:
        raise DiffinError(f"sample_bytes={sample_bytes}: pass the bytes of a sample, or None")
    # The slowest process ends last: it has one sample more than the others at most.
    scoring = math.ceil(count / machines.workers) * (forecast.reading + forecast.measuring) / machines.speed
    probing = forecast.probe_seconds / machines.speed
    start = _START_SECONDS if machines.workers > 1 else 0.0
    hours = (probing + machines.count * (start + scoring)) / 3600
    read = None if sample_bytes is None else math.ceil(count * sample_bytes)
    probes = forecast.probe_bytes * machines.workers
    return Plan(
        samples=count,
        states=forecast.checkpoints,
        machines=machines,
        probe_seconds=probing,
        scoring_seconds=scoring,
        start_seconds=start,
        machine_hours=hours,
        cost=None if machines.price is None else hours * machines.price,
        process_bytes=forecast.process_bytes,
        probe_bytes=forecast.probe_bytes,
        score_bytes=count * _NUMBER_BYTES * len(names(range(forecast.checkpoints))),
        read_bytes=read,
        read_rate=None if read is None else (read + probes) / (start + scoring),
    )
