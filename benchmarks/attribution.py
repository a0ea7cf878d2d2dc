"""What pairwise attribution costs: N samples by Q queries, the strongest 20 of either end.

    python benchmarks/attribution.py [--samples 10000] [--queries 100] [--estimators tracin diffin segments steps]

On Fashion-MNIST with a CNN of 105,866 parameters and ten checkpoints. Printed as Markdown. Directions are built once for all
queries (what the other libraries prepare stands in their place); scoring multiplies per-sample gradients with them, and is
held against plain inference of the same samples at the same number of states, and in memory against scoring one query.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.data import TensorDataset

import diffin
from data import FashionMNIST, dataset, fashion_mnist
from diffin.attribution import attribute
from diffin.attribution.directions import build_directions
from diffin.attribution.queries import ask
from diffin.derivatives import Difference
from diffin.sources import open_source
from diffin.tasks import Classification
from memory import _peak as peak
from networks import cnn
from peers_environment import HERE, PeersError, about
from peers_environment import ask as ask_peers
from table import Table, machine
from training import Run, Setting, infer, record

BATCH_SIZE = 256
TOP = 20
ESTIMATORS = {
    "tracin": diffin.TracIn(),
    "diffin": diffin.DiffIn(),
    "segments": diffin.Unrolled(propagation="segments"),
    "steps": diffin.Unrolled(propagation="steps"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--no-peers", action="store_true", help="leave the other libraries out")
    parser.add_argument("--estimators", nargs="+", choices=ESTIMATORS, default=list(ESTIMATORS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = fashion_mnist()
    setting = Setting(samples=arguments.samples, checkpoints=10, epochs=arguments.epochs)
    table = Table(
        f"{arguments.samples:,} samples x {arguments.queries} queries, top {TOP}",
        "estimator", "directions, s", "over the training", "measuring, s", "over plain inference", "ms per query, all in",
        "peak, MiB", "of scoring one query",
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        run = record(data, "smooth", setting, folder / "run")
        training = run.step_seconds * run.trajectory.total_steps
        plain = _seconds(lambda: infer(run, BATCH_SIZE))
        query = _queries(data, arguments.queries)
        for name in arguments.estimators:
            seconds = _measure(name, run, query, folder / name, training, plain)
            peaks = _peaks(name, folder, arguments.samples, arguments.queries)
            table.add(name, *seconds, *peaks)
        if not arguments.no_peers:
            _peers(table, run, query, folder)
    print(f"{machine()}; training {training:.1f} s, plain inference at 10 states {plain:.1f} s\n")
    print(table.markdown())


def _queries(data: FashionMNIST, count: int) -> TensorDataset:
    return dataset(data.test_images[:count], data.test_labels[:count])


def _measure(name: str, run: Run, query: TensorDataset, folder: Path, training: float, plain: float) -> tuple[str, ...]:
    """Seconds of building and of measuring, over what they are held against."""
    task = Classification(run.model)
    train, asked = open_source(run.train), ask(open_source(query), None, BATCH_SIZE)
    start = time.perf_counter()
    build_directions(
        task, run.trajectory, train, asked, estimator=ESTIMATORS[name], parameters=None, output=folder / "directions",
        batch_size=BATCH_SIZE, progress=False,
    )  # fmt: skip
    building = time.perf_counter() - start
    measuring = _seconds(
        lambda: attribute(
            task, run.trajectory, run.train, query, estimator=ESTIMATORS[name], top=TOP, output=folder, progress=False
        )
    )
    return (
        f"{building:.1f}", f"{building / training:.1f}", f"{measuring:.1f}", f"{measuring / plain:.1f}",
        f"{1e3 * (building + measuring) / len(query):.0f}",
    )  # fmt: skip


def _peers(table: Table, run: Run, query: TensorDataset, folder: Path) -> None:
    """The other libraries; their preparation, which does not depend on the queries, stands for the directions."""
    question = about(run, query, batch_size=BATCH_SIZE, asked="pairs", top=TOP)
    try:
        answers = ask_peers(question, folder, script=HERE / "peers_of_pairs.py", seconds=3600)
    except PeersError as error:
        table.add("other libraries", str(error), *[""] * 6)
        return
    for name, answer in answers.items():
        if "failure" in answer:
            table.add(name, answer["failure"], *[""] * 6)
            continue
        states = "last checkpoint" if answer["checkpoints"] == 1 else f"{answer['checkpoints']} checkpoints"
        seconds, before = answer["seconds"], answer["preparation_seconds"]
        table.add(
            f"{name} {answer['version']}, {states}", f"{before:.1f}", "", f"{seconds:.1f}",
            f"{seconds / answer['plain_seconds']:.1f}", f"{1e3 * (seconds + before) / len(query):.0f}", "", "",
        )  # fmt: skip


def _peaks(name: str, folder: Path, samples: int, queries: int) -> list[str]:
    """Peaks of a process that measures pairs, and of one that scores a single query, the directions built before."""
    peaks = []
    for kind in ("pairs", "one"):
        command = [sys.executable, __file__, "--child", kind, name, str(folder), str(samples), str(queries)]
        peaks.append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    return [f"{found:.0f}" for found in peaks]


def child(kind: str, name: str, folder: Path, samples: int, queries: int) -> None:
    """In a process of its own, so that its peak is that of measuring."""
    torch.set_num_threads(1)
    data = fashion_mnist()
    train = dataset(data.train_images[:samples], data.train_labels[:samples])
    query = _queries(data, queries)
    task, trajectory = Classification(cnn("smooth")), diffin.Trajectory.open(folder / "run")
    if kind == "pairs":
        place = folder / name
        # What was found goes, what it was measured with stays.
        for file in ("attribution.json", "top.parquet"):
            (place / file).unlink()
        attribute(task, trajectory, train, query, estimator=ESTIMATORS[name], top=TOP, output=place, progress=False)
    else:
        # What directions it is measured along makes no difference to the memory.
        diffin.score(
            task,
            trajectory,
            train,
            query=query,
            estimator=diffin.TracIn(),
            derivatives=Difference(1e-3),
            progress=False,
        )
    print(peak())


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], sys.argv[3], Path(sys.argv[4]), int(sys.argv[5]), int(sys.argv[6]))
    else:
        main()
