"""What Unrolled costs: its probes over the training, and its scoring over plain inference.

    python benchmarks/unrolled.py [--samples 10000] [--epochs 5]

On Fashion-MNIST with a CNN of 105,866 parameters and ten checkpoints. Printed as Markdown; times are medians of three.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

import diffin
from data import fashion_mnist
from diffin.derivatives import choose, from_description
from diffin.sources import open_source
from diffin.tasks import Classification
from table import Table, machine
from training import Setting, infer, record

BATCH_SIZE = 256
REPETITIONS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    setting = Setting(samples=arguments.samples, checkpoints=10, epochs=arguments.epochs)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        run = record(fashion_mnist(), "smooth", setting, folder / "run")
        training = run.step_seconds * run.trajectory.total_steps
        table = Table("Cost of Unrolled", "what", "seconds", "over the training", "over plain inference at 10 states")
        task = Classification(run.model)
        plain = _median(lambda: infer(run, BATCH_SIZE))
        table.add("training, without recording", f"{training:.2f}", "1", "")
        table.add("plain inference of all samples at 10 states", f"{plain:.2f}", f"{plain / training:.2f}", "1")
        for name, estimator in {
            "probes by steps": diffin.Unrolled(propagation="steps"),
            "probes by steps, exact products": diffin.Unrolled(propagation="steps", hessian="exact"),
            "probes by segments": diffin.Unrolled(propagation="segments"),
            "probes by segments, rank 5": diffin.Unrolled(propagation="segments", rank=5),
        }.items():
            path = folder / name.replace(" ", "-")
            start = time.perf_counter()
            probes = diffin.build_probes(
                task, run.trajectory, run.train, query=run.query, estimator=estimator, output=path, progress=False
            )
            seconds = time.perf_counter() - start
            table.add(name, f"{seconds:.2f}", f"{seconds / training:.2f}", "")
        choice = choose(task, probes, next(open_source(run.train).batches(BATCH_SIZE))[1])
        step = next(entry.step for entry in choice.report.back_ends if entry.name == "difference")
        backend = from_description({"name": "difference", "step": step})
        scoring = _median(
            lambda: diffin.score_probes(
                task, probes, run.train, derivatives=backend, batch_size=BATCH_SIZE, progress=False
            )
        )
        table.add("scoring, `difference`", f"{scoring:.2f}", f"{scoring / training:.2f}", f"{scoring / plain:.2f}")
    print(f"{machine()}; {arguments.samples:,} samples, {arguments.epochs} epochs, batch {setting.batch_size}\n")
    print(table.markdown())


def _median(function: Callable[[], object]) -> float:
    taken = []
    for _ in range(REPETITIONS):
        start = time.perf_counter()
        function()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


if __name__ == "__main__":
    main()
