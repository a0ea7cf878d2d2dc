"""Reading that repeats itself.

Before a sample is read, Python's, NumPy's and PyTorch's global generators are seeded with its index, so that a random
transform gives the same sample whatever the batch size, the number of workers, or the place at which an interrupted run
goes on. The generators of the caller are put back afterwards.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed(index: int) -> None:
    """Seed every global generator with the index of the sample that is read next."""
    random.seed(index)
    np.random.seed(index % 2**32)
    torch.default_generator.manual_seed(index)


@contextmanager
def caller_generators_kept() -> Iterator[None]:
    """Leave the global generators as they were found."""
    states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.default_generator.set_state(states[2])
