"""Seconds, and which version of the library they are of."""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F

import diffin
from cases import Case

_T = TypeVar("_T")
Clock = Callable[[], float]

_CHEAP = 1.0
"""Seconds under which a time is the median of three."""


def plain_seconds(case: Case, clock: Clock = time.process_time) -> float:
    """Of one training as it is without a recorder."""
    inputs, targets = case.train.tensors

    def train() -> None:
        model = case.build_model()
        optimizer, scheduler = case.build_optimizer(model)
        for indices in case.batches():
            torch.autograd.backward(F.cross_entropy(model(inputs[indices]), targets[indices]))
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()

    return timed(train, cheap=10.0, clock=clock)[1]


def timed(run: Callable[[], _T], *, cheap: float = _CHEAP, clock: Clock = time.process_time) -> tuple[_T, float]:
    """What it returns, and its seconds: the median of three where it is cheap.

    Those of the processor, unless told otherwise: with one thread they are the seconds on a machine that does nothing else.
    """
    seconds: list[float] = []
    while True:
        start = clock()
        result = run()
        seconds.append(clock() - start)
        if len(seconds) == 3 or seconds[0] > cheap:
            return result, statistics.median(seconds)


def _sources() -> str:
    total = hashlib.sha256()
    for path in sorted(Path(diffin.__file__).parent.rglob("*.py")):
        total.update(path.read_bytes())
    return total.hexdigest()[:12]


SOURCES = _sources()
"""A digest of the library as this process found it, so that a table can tell that its figures come from more than one."""
