"""Which samples a data loader makes its batches of, in the order in which a loop gets them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, IterableDataset

from diffin.trajectory.steps import IntArray


class NotedBatches:
    """A batch sampler that remembers what it has handed out since its iteration began.

    A data loader asks for batches ahead of the loop, but hands them on in the order of its sampler, however many workers it
    has. So the batch that the loop is at is the oldest that was not taken yet.

    Args:
        sampler: the batch sampler whose batches are handed out.
    """

    def __init__(self, sampler: Any) -> None:
        self._sampler = sampler
        self._waiting: deque[IntArray] = deque()
        self._skip = 0

    def __iter__(self) -> Iterator[Any]:
        # A new iteration: what the last one handed out beyond what the loop took is gone.
        waiting, skip = deque[IntArray](), self._skip
        self._waiting, self._skip = waiting, 0
        for number, batch in enumerate(self._sampler):
            if number >= skip:
                waiting.append(np.array(list(batch), dtype=np.int64))
            yield batch

    def __len__(self) -> int:
        return len(self._sampler)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._sampler, name)

    def skip(self, count: int) -> None:
        """The next iteration begins with batches that the loop will not see (a resumed epoch)."""
        self._skip = count

    def take(self) -> IntArray | None:
        """The samples of the batch that the loop is at, Int64[ndarray, "B"]; ``None`` if nothing was handed out."""
        return self._waiting.popleft() if self._waiting else None


def note_batches(loader: Any) -> NotedBatches | None:
    """Have a data loader note its batches, from its next iteration on.

    Returns:
        Where they are noted; ``None`` where its batches are not made of known positions, or not handed on in order.
    """
    inner = _innermost(loader)
    if not isinstance(inner, DataLoader) or isinstance(inner.dataset, IterableDataset):
        return None
    sampler = inner.batch_sampler
    if isinstance(sampler, NotedBatches):
        return sampler
    if not isinstance(sampler, Iterable) or not getattr(inner, "in_order", True):
        return None
    noted = NotedBatches(sampler)
    # A data loader refuses another sampler once it is made, as most would break what it has promised; this one does not.
    object.__setattr__(inner, "batch_sampler", noted)
    return noted


def leave_batches(loader: Any) -> None:
    """Undo :func:`note_batches`."""
    inner = _innermost(loader)
    sampler = getattr(inner, "batch_sampler", None)
    if isinstance(sampler, NotedBatches):
        object.__setattr__(inner, "batch_sampler", sampler._sampler)


def _innermost(loader: Any) -> Any:
    """The data loader inside what Accelerate made of it."""
    return getattr(loader, "base_dataloader", loader)
