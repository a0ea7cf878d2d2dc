"""Computing in processes that are killed at random moments and started again, for the scripts that tests run."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

Written = Callable[[Path], dict[str, int]]
"""The files that a resumed run goes on from, and when they were written."""


def kill_repeatedly(
    kinds: Iterable[str],
    record: Callable[[Path], object],
    compute: Callable[[Path, Path, str], None],
    written: Written,
    *,
    most: int,
) -> None:
    """The whole of a script with the arguments FOLDER KILLS SEED.

    Args:
        kinds: what to compute, each into FOLDER/<kind>/whole and, killed, into FOLDER/<kind>/killed.
        record: trains once, into a folder.
        compute: (output, recording, kind).
        written: of an output. What it says after every kill is printed as JSON, by kind.
        most: how many times something is written, at most, before a kill.
    """
    torch.set_num_threads(1)
    folder, kills, generator = Path(sys.argv[1]), int(sys.argv[2]), random.Random(sys.argv[3])
    run = folder / "run"
    record(run)
    histories = {}
    for kind in kinds:
        # It also imports what is imported late, so that the processes forked below need not.
        compute(folder / kind / "whole", run, kind)
        output, history = folder / kind / "killed", []
        for attempt in range(kills + 1):
            child = os.fork()
            if child == 0:
                compute(output, run, kind)
                os._exit(0)
            if attempt < kills:
                _kill_after_progress(child, output, written, generator, most)
                history.append(written(output))
            elif status := os.waitpid(child, 0)[1]:
                sys.exit(f"the last attempt with {kind} failed with status {status}")
        histories[kind] = history
    sys.stdout.write(json.dumps(histories))


def _kill_after_progress(child: int, output: Path, written: Written, generator: random.Random, most: int) -> None:
    """Kill the process some moments after it has written something, unless it ends before."""
    already = written(output)
    wanted = generator.randint(1, most)
    while wanted and not os.waitpid(child, os.WNOHANG)[0]:
        try:
            now = written(output)
        except FileNotFoundError:  # replaced while it was looked at
            continue
        if now != already:
            already, wanted = now, wanted - 1
        time.sleep(0.0005)
    if wanted:
        return
    time.sleep(generator.uniform(0, 0.02))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
