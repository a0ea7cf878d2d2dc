"""Trainings to be killed: for each folder read from standard input, a process that trains into it and resumes.

Prints the process number and, asked by another line, waits for that process and prints its exit status. Forking saves
importing PyTorch each time.
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings

import torch
from recorded_loops import SAMPLES, make, train

from diffin.trajectory import Recorder

STEPS = 200


def run(path: str) -> None:
    model, optimizer = make(torch.optim.AdamW, weight_decay=0.1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    with Recorder(path, model, optimizer, dataset_size=SAMPLES, checkpoints=6, resume="latest") as recorder:
        for _ in range(recorder.steps_taken):
            scheduler.step()
        for _ in train(recorder, model, optimizer, STEPS, scheduler):
            pass


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # The scheduler complains that it is advanced before the optimizer.
    with tempfile.TemporaryDirectory() as folder:
        run(folder)  # Everything that is imported late is imported now, before forking.
    while line := sys.stdin.readline():
        child = os.fork()
        if child == 0:
            run(line.strip())
            os._exit(0)
        sys.stdout.write(f"{child}\n")
        sys.stdout.flush()
        sys.stdin.readline()
        sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
