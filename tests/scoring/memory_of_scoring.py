"""Run by test_memory: score N samples made as they are read, and print the peak of the memory in KiB.

Usage: memory_of_scoring.py N FOLDER
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import Dataset

from diffin.derivatives import Difference
from diffin.probes import CheckpointProbes, Probe, ProbeWriter
from diffin.scoring import score_probes
from diffin.tasks import Classification


class Pictures(Dataset):
    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int):
        return torch.rand(3, 32, 32), index % 10


def main() -> None:
    count, folder = int(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2),
        nn.GELU(),
        nn.Conv2d(8, 16, 3, stride=2),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(784, 10),
    )
    state = {name: p.detach() for name, p in model.named_parameters()}
    writer = ProbeWriter(folder / "probes", list(state), {})
    for step in (0, 1):
        directions = [{name: torch.randn_like(p) for name, p in state.items()} for _ in range(3)]
        writer.write(CheckpointProbes(step, state, (Probe(1.0, directions[0], (directions[1], directions[2])),)))
    scores = score_probes(
        Classification(model),
        writer.finish([0, 1]),
        Pictures(count),
        derivatives=Difference(1e-3),
        output=folder / "scores",
        part_rows=500,
        progress=False,
    )
    if len(scores) != count:
        sys.exit(f"scored {len(scores)} samples")
    sys.stdout.write(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))


if __name__ == "__main__":
    main()
