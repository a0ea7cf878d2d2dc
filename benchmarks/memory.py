"""Peak memory of scoring N samples: run in a process of its own, so that the peak is that of scoring.

    python benchmarks/memory.py PROBES N STEP THREADS

All pictures of Fashion-MNIST are in memory whatever N is, as bytes: what is compared is the scoring. Prints the resident
megabytes before scoring and at the peak.
"""

from __future__ import annotations

import resource
import sys
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

import diffin
from data import dataset
from diffin.derivatives import Difference
from diffin.probes import ProbeSet
from diffin.tasks import Classification
from networks import cnn

PICTURES, LABELS = "pictures.npy", "labels.npy"


class FirstPictures(Dataset[tuple[Tensor, ...]]):
    """The first pictures of arrays, converted one by one."""

    def __init__(self, images: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8], count: int) -> None:
        self._images, self._labels, self._count = images, labels, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        if not 0 <= index < self._count:
            raise IndexError(index)
        return dataset(self._images[index : index + 1], self._labels[index : index + 1])[0]


def main(folder: Path, samples: int, step: float, threads: int) -> None:
    torch.set_num_threads(threads)
    pictures = FirstPictures(np.load(folder / PICTURES), np.load(folder / LABELS), samples)
    before = _peak()
    with tempfile.TemporaryDirectory() as output:
        diffin.score_probes(
            Classification(cnn()),
            ProbeSet.open(folder),
            pictures,
            derivatives=Difference(step),
            output=output,
            progress=False,
        )
    print(before, _peak())


def _peak() -> float:
    """MiB. On Linux getrusage would count what the parent held when it forked; the status file does not."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
