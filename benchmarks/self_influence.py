"""What self-influence costs over plain inference, and how well a few eigenpairs rank samples.

    python benchmarks/self_influence.py [--samples 10000] [--epochs 5] [--exact 500] [--queries 100] [--repetitions 3]
                                        [--kinked]

On Fashion-MNIST with a CNN of 105,866 parameters and five checkpoints. Times are medians of repetitions that take turns, the
exact mode's from its first 100 samples; the rank correlation is with the exact mode on `--exact` samples, and of `Unrolled`
with an attribution that has each of `--queries` samples as a query; these two take most of the time. Other libraries are
asked about the same samples, in an environment of their own, and held against plain inference there. Printed as Markdown.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from scipy.stats import spearmanr
from torch.utils.data import Subset, TensorDataset

import diffin
from data import fashion_mnist
from diffin.derivatives.own import OwnExact
from diffin.derivatives.own_check import from_description
from diffin.estimators.self_influence import SelfInfluence
from diffin.estimators.self_unrolled import SelfUnrolled
from diffin.own_influence import curvature_sets
from diffin.tasks import Classification
from peers_environment import HERE, PeersError, about, ask
from table import Table, machine
from training import Run, Setting, infer, record

BATCH_SIZE = 256
TIMED_EXACTLY = 100

_T = TypeVar("_T")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--exact", type=int, default=500, help="samples to compare with the exact mode")
    parser.add_argument(
        "--queries", type=int, default=100, help="samples to attribute for Unrolled; 0 to leave that out"
    )
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--no-peers", action="store_true", help="leave the other libraries out")
    parser.add_argument("--kinked", action="store_true", help="ReLU and max-pooling for GELU and average pooling")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    setting = Setting(samples=arguments.samples, checkpoints=5, epochs=arguments.epochs)
    kind = "kinked" if arguments.kinked else "smooth"
    with tempfile.TemporaryDirectory() as temporary:
        run = record(fashion_mnist(), kind, setting, Path(temporary) / "run")
        table, tracin = _compare(run, arguments.exact, min(arguments.queries, arguments.exact), arguments.repetitions)
        if not arguments.no_peers:
            _peers(table, run, tracin, Path(temporary))
    print(
        f"{machine()}; {kind} CNN, {arguments.samples:,} samples, {arguments.epochs} epochs, {setting.checkpoints} "
        "checkpoints\n"
    )
    print(table.markdown())


def _compare(run: Run, exact_samples: int, queries: int, repetitions: int) -> tuple[Table, np.ndarray]:
    """The table, and what TracIn says."""
    task = Classification(run.model)
    scorers: dict[str, Callable[[], object]] = {"plain": lambda: infer(run, BATCH_SIZE)}
    once: dict[str, float] = {}
    checks: dict[str, str] = {}
    influence: dict[str, np.ndarray] = {}
    for name, estimator in {
        "TracIn": SelfInfluence(diffin.TracIn()),
        "Diff-In, rank 5": SelfInfluence(diffin.DiffIn(), 5),
        "Diff-In, rank 20": SelfInfluence(diffin.DiffIn(), 20),
        **({f"Unrolled, rank {rank}": SelfUnrolled(diffin.Unrolled(), rank) for rank in (16, 64)} if queries else {}),
    }.items():
        probes, once[name] = _timed(
            lambda estimator=estimator: diffin.build_probes(
                task, run.trajectory, run.train, estimator=estimator, progress=False
            )
        )
        scores, _ = _timed(
            lambda probes=probes: diffin.score_probes(task, probes, run.train, batch_size=BATCH_SIZE, progress=False)
        )
        influence[name] = scores.influence
        check = scores.metadata["self_check"]
        checks[name] = "" if check is None else f"{check['back_ends'][0]['error']:.0e}"
        backend = from_description(scores.metadata["derivatives"])
        scorers[name] = lambda probes=probes, backend=backend: diffin.score_probes(
            task, probes, run.train, derivatives=backend, batch_size=BATCH_SIZE, progress=False
        )
    seconds = _in_turn(scorers, repetitions)
    exact, per_sample = _exact(task, run, exact_samples)
    pairs, of_pairs = _timed(lambda: _pairs(task, run, queries)) if queries else (None, 0.0)
    table = Table(
        "Self-influence", "what", "scoring, s", "over plain inference", "probes, s", "error of differences",
        f"Spearman with what it approximates, {exact_samples} samples" + (f" ({queries} for Unrolled)" if queries else ""),
    )  # fmt: skip
    plain = seconds["plain"]
    table.add("plain inference", f"{plain:.2f}", "1", "", "", "")
    for name in influence:
        wanted = pairs if name.startswith("Unrolled") else exact
        agreement = (
            "" if wanted is None else f"{float(spearmanr(influence[name][: len(wanted)], wanted).statistic):.4f}"
        )
        table.add(
            name, f"{seconds[name]:.2f}", f"{seconds[name] / plain:.1f}", f"{once[name]:.1f}", checks[name],
            agreement if name != "TracIn" else f"{agreement} (another question)",
        )  # fmt: skip
    whole, timed = per_sample * len(run.train), min(TIMED_EXACTLY, exact_samples)
    table.add(f"Diff-In, exact, from {timed} samples", f"{whole:,.0f}", f"{whole / plain:,.0f}", "", "", "1")
    if queries:
        what = f"Unrolled, a query for each of {queries} samples"
        table.add(what, f"{of_pairs:,.0f} in all", f"{of_pairs / plain:,.0f}", "", "", "1")
    return table, influence["TracIn"]


def _peers(table: Table, run: Run, tracin: np.ndarray, folder: Path) -> None:
    """Other libraries; theirs are first order at all checkpoints, or of the last one only."""
    question = about(run, run.query, batch_size=BATCH_SIZE, asked="own")
    try:
        answers = ask(question, folder, script=HERE / "peers_of_pairs.py", seconds=3600)
    except PeersError as error:
        table.add("other libraries", str(error), *[""] * 4)
        return
    for name, answer in answers.items():
        if "failure" in answer:
            table.add(name, answer["failure"], *[""] * 4)
            continue
        # Their sign is the opposite of ours: positive helps.
        agreement = float(spearmanr(-answer["scores"].numpy(), tracin).statistic)
        states = "last checkpoint" if answer["checkpoints"] == 1 else f"{answer['checkpoints']} checkpoints"
        table.add(
            f"{name} {answer['version']}, {states}", f"{answer['seconds']:.2f}",
            f"{answer['seconds'] / answer['plain_seconds']:.1f}", f"{answer['preparation_seconds']:.1f}", "",
            f"with TracIn {agreement:.3f}",
        )  # fmt: skip


def _exact(task: Classification, run: Run, samples: int) -> tuple[np.ndarray, float]:
    """The exact mode on the first samples, and seconds a sample."""
    estimator = SelfInfluence(diffin.DiffIn(), exact=True)
    probes = diffin.build_probes(task, run.trajectory, run.train, estimator=estimator, progress=False)
    backend = OwnExact(curvature_sets(probes, run.train))
    found: list[np.ndarray] = []
    seconds: list[float] = []
    for start in range(0, samples, TIMED_EXACTLY):
        part = TensorDataset(*(column[start : min(start + TIMED_EXACTLY, samples)] for column in run.train.tensors))
        scores, taken = _timed(
            lambda part=part: diffin.score_probes(task, probes, part, derivatives=backend, progress=False)
        )
        found.append(scores.influence)
        seconds.append(taken / len(part))
    return np.concatenate(found), seconds[0]


def _pairs(task: Classification, run: Run, samples: int) -> np.ndarray:
    """Influence of the first samples on themselves, by an attribution with each of them as a query."""
    queries = Subset(run.train, range(samples))
    with tempfile.TemporaryDirectory() as output:
        found = diffin.attribute(
            task, run.trajectory, run.train, queries, estimator=diffin.Unrolled(propagation="segments"), matrix=True,
            output=output, progress=False,
        )  # fmt: skip
        return np.concatenate([part for _, part in found.matrix()])[:samples].diagonal()


def _in_turn(scorers: dict[str, Callable[[], object]], repetitions: int) -> dict[str, float]:
    taken: dict[str, list[float]] = {name: [] for name in scorers}
    for _ in range(repetitions):
        for name, scorer in scorers.items():
            taken[name].append(_timed(scorer)[1])
    return {name: statistics.median(each) for name, each in taken.items()}


def _timed(function: Callable[[], _T]) -> tuple[_T, float]:
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start


if __name__ == "__main__":
    main()
