"""Run by the tests of engines: one of the processes that torchrun starts.

Usage: scoring_of_ranks.py OUTPUT PROBES CASE.... Scores into OUTPUT/<case>, and writes what each process has, or what it
failed with, into OUTPUT/<case>-<rank>.txt. The cases are those of `Made`, and "whole", where nothing goes wrong.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from diffin.derivatives import Forward
from diffin.probes import ProbeSet
from diffin.scoring import score_probes
from diffin.tasks import Classification

COUNT = 37
OPTIONS: dict[str, Any] = {"derivatives": Forward(), "batch_size": 4, "part_rows": 4, "progress": False}


class Made(Dataset):
    """Samples made when they are read, with a random part.

    Args:
        case: ``"damaged"`` where the second process, or one that was sent this, cannot read; ``"other"`` where the second
            reads other samples; ``"slow"`` where reading takes its time.
    """

    def __init__(self, case: str = "") -> None:
        self.case, self.home = case, os.getpid()

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int):
        second = os.environ.get("RANK") == "1"
        if self.case == "damaged" and (second or os.getpid() != self.home) and index % 2:
            raise OSError(f"picture {index} is damaged")
        if self.case == "slow":
            time.sleep(0.05)
        shift = self.case == "other" and second
        return torch.sin(torch.arange(4.0, dtype=torch.float64) * index + shift) + torch.randn(4) * 0.1, index % 3


def task() -> Classification:
    torch.manual_seed(0)
    return Classification(nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 3)).double())


def main() -> None:
    torch.set_num_threads(1)
    output, probes, rank = Path(sys.argv[1]), ProbeSet.open(sys.argv[2]), os.environ["RANK"]
    for case in sys.argv[3:]:
        try:
            scores = score_probes(task(), probes, Made(case), output=output / case, engine="torchrun", **OPTIONS)
            said = f"{len(scores)} rows summing to {scores.influence.sum():.12e}"
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
        (output / f"{case}-{rank}.txt").write_text(said)


if __name__ == "__main__":
    main()
