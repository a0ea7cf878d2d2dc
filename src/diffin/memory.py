"""What fits into memory, and how to tell that something did not."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from diffin.batches import Batch, nbytes, tensors

_CPU_BYTES = 2**20
_BYTES_OF_TOKEN = 512
_CPU_RANGE = (8, 256)


def from_sample_bytes(sample: Batch, count: int) -> int:
    """A batch size that depends on nothing but the samples: a power of two whose inputs take about 1 MiB.

    That is where a processor has its caches; more samples at once cost memory and gain nothing. A token (an integer in
    a sequence) is counted as the activations it will become.

    Args:
        sample: a batch of ``count`` samples.
        count: how many.
    """
    tokens = sum(
        t.numel() for t in tensors(sample) if t.ndim > 1 and not t.is_floating_point() and t.dtype == torch.int64
    )
    size = max(1, (nbytes(sample) + tokens * _BYTES_OF_TOKEN) // count)
    low, high = _CPU_RANGE
    return max(low, min(high, power_of_two(_CPU_BYTES / size)))


def resident_bytes() -> int:
    """What this process takes of the memory of its machine now; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):  # not Linux
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def power_of_two(value: float) -> int:
    """The largest power of two that is not above ``value``; 1 below that."""
    return 1 << max(0, int(value).bit_length() - 1)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a device, or the memory of the host, was too small. Only CUDA has an exception of its own for that."""
    message = str(error)
    return (
        isinstance(error, torch.OutOfMemoryError)
        or "MPS backend out of memory" in message
        or ("DefaultCPUAllocator" in message and "memory" in message)
    )
