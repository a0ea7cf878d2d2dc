"""What scoring costs, how exact it is, and what recording costs: measured in one run, printed as Markdown.

    python benchmarks/scoring.py [--quick]

On Fashion-MNIST with a CNN of 105,866 parameters. Times are medians of repetitions that take turns, on the same samples
and checkpoints, read from the same source; building probes and checking the derivatives happen once, and are shown
beside. The yardstick is plain inference: the losses of all samples at all checkpoints, in inference mode.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from scipy.stats import spearmanr
from torch.utils.data import DataLoader

import diffin
from accuracy import Accuracy, measure
from authors import SavedCheckpoint, influence
from data import FashionMNIST, fashion_mnist
from diffin.derivatives import choose, from_description
from diffin.probes import ProbeSet
from diffin.sources import open_source
from diffin.tasks import Classification
from memory import LABELS, PICTURES
from networks import cnn
from overhead import recording_seconds
from peers_environment import PeersError, about, ask
from table import Table, machine
from training import Run, Setting, infer, record

BATCH_SIZE = 256
AUTHORS_SAMPLES = 50
AUTHORS_SECONDS = 120.0
MEMORY_RUNS = 5
BACK_ENDS = ("difference", "ghost", "forward")

_T = TypeVar("_T")
_START = time.perf_counter()


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    setting: Setting = field(default_factory=Setting)
    repetitions: int = 3
    exact_samples: int = 500
    memory_samples: tuple[int, int] = (1_000, 10_000)


QUICK = Effort(Setting(samples=1_000, query_samples=200, checkpoints=2, epochs=1), 2, 100, (500, 1_000))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="small sizes, to see that everything runs; the figures mean nothing"
    )
    effort = QUICK if parser.parse_args().quick else Effort()
    torch.set_num_threads(torch.get_num_threads())  # pins what sub-processes are told
    data = fashion_mnist()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        _say("training a smooth network (GELU, average pooling) and a kinked one (ReLU, max pooling)")
        runs = {kind: record(data, kind, effort.setting, folder / kind) for kind in ("smooth", "kinked")}
        _say("building probes")
        probes, seconds = _timed(lambda: _probes(runs["smooth"], folder / "probes-smooth"))
        kinked = _probes(runs["kinked"], folder / "probes-kinked")
        cost, plain_seconds = _cost(runs["smooth"], probes, seconds, effort)
        _say("the authors' procedure")
        _authors(cost, runs["smooth"], effort.setting, plain_seconds, folder)
        _say("other libraries")
        _peers(cost, runs["smooth"], folder)
        _say("errors against float64")
        error = Table("Error against exact float64", "network", "back end", "relative error", "Spearman", "step")
        for run, built, kind in (
            (runs["smooth"], probes, "GELU, average pooling"),
            (runs["kinked"], kinked, "ReLU, max pooling"),
        ):
            _errors(error, kind, measure(run.model, built, run.train, effort.exact_samples))
        _say("memory")
        memory = _memory(data, folder / "probes-smooth", effort)
        _say("recording")
        recording = _recording(runs["smooth"], effort.setting)
    print(f"\n{machine()}; {_size(effort.setting, runs['smooth'])}\n")
    for table in (cost, error, memory, recording):
        print(table.markdown())
    print(f"All of it took {time.perf_counter() - _START:.0f} s.")


def _cost(run: Run, probes: ProbeSet, building: float, effort: Effort) -> tuple[Table, float]:
    """Scoring with every back end over plain inference."""
    task = Classification(run.model)
    sample = next(open_source(run.train).batches(BATCH_SIZE))[1]
    _say("checking the derivatives")
    choice, checking = _timed(lambda: choose(task, probes, sample))
    steps = {entry.name: entry.step for entry in choice.report.back_ends}
    contenders: dict[str, Callable[[], object]] = {"plain": lambda: infer(run, BATCH_SIZE)}
    for name in BACK_ENDS:
        backend = from_description({"name": name, "step": steps[name]})
        contenders[name] = lambda backend=backend: diffin.score_probes(
            task, probes, run.train, derivatives=backend, batch_size=BATCH_SIZE, progress=False
        )
    _say("scoring with every back end, and plain inference, in turn")
    seconds = _in_turn(contenders, effort.repetitions)
    plain = seconds["plain"]
    table = Table("Cost", "what", "question", "seconds", "over plain inference")
    table.add("plain inference", "the losses", f"{plain:.2f}", "1")
    for name in BACK_ENDS:
        chosen = ", the one that `auto` takes" if name == choice.backend.name else ""
        table.add(f"diffin `{name}`{chosen}", "Eq. 9", f"{seconds[name]:.2f}", f"{seconds[name] / plain:.2f}")
    table.add("... once: probes", "", f"{building:.2f}", f"{building / plain:.2f}")
    table.add("... once: self-check of all back ends", "", f"{checking:.2f}", f"{checking / plain:.2f}")
    return table, plain


def _authors(table: Table, run: Run, setting: Setting, plain: float, folder: Path) -> None:
    """The published per-sample procedure on a few samples, extrapolated."""
    checkpoints = []
    for checkpoint in run.trajectory.checkpoints:
        path = folder / f"authors-{checkpoint.step}.pt"
        torch.save(checkpoint.state, path)
        checkpoints.append(SavedCheckpoint(path, checkpoint.step, checkpoint.learning_rate))
    query = DataLoader(run.query, BATCH_SIZE)
    count, start = 0, time.perf_counter()
    while count < AUTHORS_SAMPLES and time.perf_counter() - start < AUTHORS_SECONDS:
        influence(
            run.train[count],
            cnn,
            checkpoints,
            run.train,
            query,
            dataset_size=setting.samples,
            batch_size=setting.batch_size,
        )
        count += 1
    seconds = (time.perf_counter() - start) / count * setting.samples
    table.add(
        f"per-sample procedure of the authors, from {count} samples",
        "Eq. 9",
        f"{seconds:,.0f}",
        f"{seconds / plain:,.0f}",
    )


def _peers(table: Table, run: Run, folder: Path) -> None:
    try:
        answers = ask(about(run, run.query, batch_size=BATCH_SIZE), folder)
    except PeersError as error:
        table.add("other libraries", "", "not run", str(error))
        return
    tracin = diffin.score(
        Classification(run.model), run.trajectory, run.train, query=run.query, estimator=diffin.TracIn(), progress=False
    )
    for name, answer in answers.items():
        if "failure" in answer:
            table.add(name, "", "failed", answer["failure"])
            continue
        first_order = answer["checkpoints"] > 1
        # Their sign is the opposite of ours: positive helps.
        agreement = float(spearmanr(-answer["scores"].numpy(), tracin.influence).statistic)
        asked = (
            f"first order; Spearman with `TracIn` {agreement:.3f}"
            if first_order
            else "inverse Hessian, last checkpoint only"
        )
        plain = answer["plain_seconds"]
        table.add(f"{name} {answer['version']}", asked, f"{answer['seconds']:.2f}", f"{answer['seconds'] / plain:.1f}")
        if answer["preparation_seconds"] is not None:
            once = answer["preparation_seconds"]
            table.add("... once: factors", "", f"{once:.2f}", f"{once / plain:.1f}")


def _errors(table: Table, kind: str, found: dict[str, Accuracy]) -> None:
    for name in BACK_ENDS:
        entry = found[name]
        step = "" if entry.step is None else f"{entry.step:.0e}"
        table.add(kind, f"`{name}`", f"{entry.error:.1e}", f"{entry.rank_agreement:.5f}", step)


def _memory(data: FashionMNIST, probes: Path, effort: Effort) -> Table:
    np.save(probes / PICTURES, data.train_images)
    np.save(probes / LABELS, data.train_labels)
    table = Table(
        "Peak memory of a scoring process", "samples", "before scoring, MiB", "peak, MiB (range)", "over the first"
    )
    script = Path(__file__).with_name("memory.py")
    befores: dict[int, list[float]] = {samples: [] for samples in effort.memory_samples}
    peaks: dict[int, list[float]] = {samples: [] for samples in effort.memory_samples}
    # The allocator alone moves the peak by some per cent from one process to the next.
    for _ in range(MEMORY_RUNS):
        for samples in effort.memory_samples:
            command = [sys.executable, str(script), str(probes), str(samples), "1e-3", str(torch.get_num_threads())]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            before, peak = map(float, output.split())
            befores[samples].append(before)
            peaks[samples].append(peak)
    first = statistics.median(peaks[effort.memory_samples[0]])
    for samples in effort.memory_samples:
        peak, before = statistics.median(peaks[samples]), statistics.median(befores[samples])
        spread = f"{min(peaks[samples]):.0f} to {max(peaks[samples]):.0f}"
        table.add(f"{samples:,}", f"{before:.0f}", f"{peak:.0f} ({spread})", f"{peak / first:.3f}")
    return table


def _recording(run: Run, setting: Setting) -> Table:
    table = Table("Recording", "what", "value")
    added = recording_seconds(setting.batch_size, setting.samples)
    table.add(f"training step, batch {setting.batch_size}", f"{run.step_seconds * 1e3:.2f} ms")
    table.add("added by the recorder outside checkpoints", f"{added * 1e6:.0f} µs, {added / run.step_seconds:.2%}")
    states = len(run.trajectory.checkpoints)
    size = run.trajectory.size_bytes
    table.add(
        f"size of the trajectory, {run.trajectory.total_steps} steps, {states} checkpoints", f"{size / 2**20:.2f} MiB"
    )
    return table


def _probes(run: Run, folder: Path) -> ProbeSet:
    task = Classification(run.model)
    return diffin.build_probes(
        task, run.trajectory, run.train, query=run.query, estimator=diffin.DiffIn(), output=folder, progress=False
    )


def _in_turn(contenders: dict[str, Callable[[], object]], repetitions: int) -> dict[str, float]:
    """Median seconds of each, after one run to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for repetition in range(repetitions + 1):
        for name, run in contenders.items():
            _, taken = _timed(run)
            if repetition:
                seconds[name].append(taken)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def _timed(run: Callable[[], _T]) -> tuple[_T, float]:
    start = time.perf_counter()
    result = run()
    return result, time.perf_counter() - start


def _size(setting: Setting, run: Run) -> str:
    parameters = sum(p.numel() for p in run.model.parameters())
    return (
        f"Fashion-MNIST, CNN of {parameters:,} parameters (accuracy {run.accuracy:.3f}), N = {setting.samples:,}, "
        f"m = {setting.checkpoints}, |V| = {setting.query_samples:,}"
    )


def _say(what: str) -> None:
    print(f"{time.perf_counter() - _START:4.0f} s  {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
