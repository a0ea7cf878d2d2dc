"""Run by test_memory: attribute N samples made as they are read to 20 queries, and print the peak of the memory in KiB.

Usage: memory_of_attribution.py N FOLDER
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

import diffin
from diffin.attribution import attribute, collecting
from diffin.tasks import Classification


class Pictures(Dataset):
    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int):
        return torch.rand(3, 16, 16), index % 10


def main() -> None:
    count, folder = int(sys.argv[1]), Path(sys.argv[2])
    folder.mkdir()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.GELU(), nn.Flatten(), nn.Linear(392, 10))
    path = folder / "state.pt"
    torch.save(model.state_dict(), path)
    trajectory = diffin.Trajectory.from_checkpoints([path], [5], [0.1], dataset_size=count)
    query = TensorDataset(torch.rand(20, 3, 16, 16), torch.arange(20) % 10)
    collecting._PART_ROWS = 500
    found = attribute(
        Classification(model), trajectory, Pictures(count), query, estimator=diffin.TracIn(), top=10, matrix=True,
        output=folder / "out", progress=False,
    )  # fmt: skip
    if found.samples != count:
        sys.exit(f"attributed {found.samples} samples")
    sys.stdout.write(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))


if __name__ == "__main__":
    main()
