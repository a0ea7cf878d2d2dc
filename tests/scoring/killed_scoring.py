"""Run by test_resume: score in a process of its own, which is killed at random moments and started again.

Usage: killed_scoring.py OUTPUT PROBES KIND KILLS SEED. Prints, as JSON, the parts that were there after each kill.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import pyarrow.parquet  # noqa: F401  the processes forked below need not import it again
import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset

import diffin.derivatives.selfcheck  # noqa: F401
from diffin.derivatives import Forward
from diffin.probes import ProbeSet
from diffin.scoring import score_probes
from diffin.tasks import Classification

COUNT = 240


class Made(Dataset):
    """Samples made when they are read, with a random part."""

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int):
        return torch.sin(torch.arange(4.0, dtype=torch.float64) * index) + torch.randn(4) * 0.1, index % 3


class Streamed(IterableDataset):
    def __iter__(self):
        made = Made()
        return (made[index] for index in range(COUNT))


def run(output: Path, probes: Path, kind: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    task = Classification(nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 3)).double())
    dataset = Made() if kind == "map" else Streamed()
    score_probes(
        task,
        ProbeSet.open(probes),
        dataset,
        derivatives=Forward(),
        output=output,
        batch_size=3,
        part_rows=8,
        progress=False,
    )


def _parts(output: Path) -> list[Path]:
    return list(output.glob("part-*.parquet"))


def _kill_after_a_part(child: int, output: Path, generator: random.Random) -> int:
    """Kill the process some moments after it has finished a part, unless it ends before."""
    already = len(_parts(output))
    while len(_parts(output)) == already:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        time.sleep(0.001)
    time.sleep(generator.uniform(0, 0.06))
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def main() -> None:
    torch.set_num_threads(1)
    torch.func.jvp(torch.sin, (torch.ones(1),), (torch.ones(1),))  # imports a good deal of torch
    output, probes, kind, kills, seed = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), sys.argv[5]
    generator = random.Random(seed)
    history = []
    for attempt in range(kills + 1):
        # Hardly anything but imports has happened in this process, so that a fork is as good as a new one.
        child = os.fork()
        if child == 0:
            run(output, probes, kind)
            os._exit(0)
        status = _kill_after_a_part(child, output, generator) if attempt < kills else os.waitpid(child, 0)[1]
        if attempt == kills and status != 0:
            sys.exit(f"the last attempt failed with status {status}")
        history.append({file.name: file.stat().st_ino for file in _parts(output)})
    sys.stdout.write(json.dumps(history))


if __name__ == "__main__":
    main()
