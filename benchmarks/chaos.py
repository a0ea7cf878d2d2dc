"""Scoring while its processes are killed: the driver, workers, whole nodes. Is every row there once, and the same?

    python benchmarks/chaos.py                 # ten kills of a Ray cluster's processes, then ten of torchrun's
    python benchmarks/chaos.py --engine ray --kills 10 --seed 1

A Ray cluster of two nodes and a head without room for workers is made of this machine. Something is killed (SIGKILL) at a
random moment; a driver is started again with the same command, a node is replaced by another one, and a worker is Ray's own
business. Under torchrun a process is killed, or the agent that watches over them, and the same command is run again.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from diffin.derivatives import Forward
from diffin.probes import CheckpointProbes, Probe, ProbeSet, ProbeWriter
from diffin.scoring import Ray, ScoringEngine, score_probes
from diffin.tasks import Classification

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from ray_nodes import Cluster, descendants, workers_of

PART_ROWS = 16
PAUSES = {"ray": (3.0, 9.0), "torchrun": (1.0, 4.0)}
"""Seconds between parts being written again and the next kill."""


class Slow(Dataset[tuple[Tensor, int]]):
    """Samples that are made when they are read, a few milliseconds each."""

    def __init__(self, length: int, seconds: float) -> None:
        self.length, self.seconds = length, seconds

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        time.sleep(self.seconds)
        return torch.sin(torch.arange(16.0) * index) + torch.randn(16) * 0.1, index % 5


def task() -> Classification:
    torch.manual_seed(0)
    return Classification(nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 5)))


def make_probes(path: Path) -> None:
    model = task().model

    def noise() -> dict[str, Tensor]:
        return {name: 0.1 * torch.randn_like(p) for name, p in model.named_parameters()}

    writer = ProbeWriter(path, [name for name, _ in model.named_parameters()], {"purpose": "chaos"})
    for step in (0, 10):
        writer.write(CheckpointProbes(step, noise(), (Probe(1.0, noise()),)))
    writer.finish([0, 10])


def run(output: Path, probes: Path, length: int, seconds: float, engine: str | ScoringEngine) -> None:
    torch.set_num_threads(1)
    score_probes(
        task(), ProbeSet.open(probes), Slow(length, seconds), derivatives=Forward(), batch_size=8, part_rows=PART_ROWS,
        output=output, progress=False, engine=engine,
    )  # fmt: skip


def parts(output: Path) -> dict[str, int]:
    """The parts that are there, and the inode of each: a part that is written again has another."""
    return {file.name: file.stat().st_ino for file in output.glob("part-*.parquet")}


class Attempts:
    """The command that scores, started again as often as it takes."""

    def __init__(self, command: list[str], environment: dict[str, str], log: Path) -> None:
        self._command, self._environment, self._log = command, environment, log
        self.started = 0
        self.start()

    def start(self) -> None:
        self.started += 1
        with self._log.open("a") as log:
            self.process = subprocess.Popen(self._command, env=self._environment, stdout=log, stderr=log)

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        """The process and what it has started: those of a driver, not those of the cluster."""
        for pid in [self.process.pid, *descendants(self.process.pid)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def log(self) -> str:
        return self._log.read_text()[-3000:]


Kill = Callable[[random.Random], str | None]
"""Kills something, and says what; ``None`` if there was nothing to kill."""


def storm(
    output: Path, attempts: Attempts, kill: Kill, kills: int, seed: int, pauses: tuple[float, float]
) -> list[Any]:
    """Kill something again and again while parts are being written, and wait for the end."""
    generator = random.Random(seed)
    found: list[Any] = []
    begin, known = time.monotonic(), parts(output)
    while len(found) < kills:
        before = len(parts(output))
        while attempts.running and len(parts(output)) == before:
            time.sleep(0.05)
        time.sleep(generator.uniform(*pauses) if attempts.running else 0)
        if not attempts.running:
            if attempts.process.returncode == 0:
                break
            attempts.start()
            continue
        moment = time.monotonic()
        told = kill(generator)
        if told is None:
            continue
        now = parts(output)
        rewritten = sum(now.get(name) != inode for name, inode in known.items())
        known = now
        found.append([told, f"{moment - begin:.1f} s", len(now), rewritten])
    while True:
        code = attempts.process.wait()
        if code == 0:
            break
        if attempts.started > 2 * kills + 3:
            raise SystemExit(f"it does not come to an end:\n{attempts.log()}")
        attempts.start()
    now = parts(output)
    found.append(
        ["(the end)", f"{time.monotonic() - begin:.1f} s", len(now), sum(now[n] != i for n, i in known.items())]
    )
    return found


def verdict(output: Path, reference: Path, length: int) -> tuple[bool, str]:
    index = np.concatenate(
        [pq.read_table(file, columns=["index"])["index"] for file in sorted(output.glob("part-*.parquet"))]
    )
    names = {file.name for file in reference.iterdir()}
    same = names == {file.name for file in output.iterdir()} and all(
        (output / name).read_bytes() == (reference / name).read_bytes() for name in names
    )
    once = len(index) == length == len(np.unique(index))
    return same and once, (
        f"{len(index):,} rows of {length:,} samples, {len(np.unique(index)):,} distinct; "
        f"bytes of all {len(names)} files {'as' if same else 'NOT as'} of one undisturbed process"
    )


def ray_storm(folder: Path, probes: Path, options: argparse.Namespace) -> list[Any]:
    with Cluster(folder / "cluster", 2) as cluster:
        own = [str(Path(__file__).resolve()), "--score", str(folder / "ray"), str(probes), cluster.address]
        sizes = ["--samples", str(options.samples), "--seconds", str(options.seconds)]
        attempts = Attempts([sys.executable, *own, *sizes], cluster.environment, folder / "driver.log")

        def kill(generator: random.Random) -> str | None:
            what = generator.choice(options.what)
            if what == "driver":
                attempts.kill()
                attempts.start()
            elif what == "worker":
                workers = [pid for node in cluster.nodes for pid in workers_of(node.process.pid)]
                if not workers:
                    return None
                with suppress(ProcessLookupError):
                    os.kill(generator.choice(workers), signal.SIGKILL)
            else:
                cluster.lose(generator.randrange(len(cluster.nodes)))
                cluster.add()
            return what

        try:
            return storm(folder / "ray", attempts, kill, options.kills, options.seed, PAUSES["ray"])
        finally:
            attempts.kill()


def torchrun_storm(folder: Path, probes: Path, options: argparse.Namespace) -> list[Any]:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", str(Path(__file__).resolve()), "--score",
        str(folder / "torchrun"), str(probes), "torchrun", "--samples", str(options.samples), "--seconds",
        str(options.seconds),
    ]  # fmt: skip
    attempts = Attempts(command, {**os.environ, "OMP_NUM_THREADS": "1"}, folder / "torchrun.log")

    def kill(generator: random.Random) -> str | None:
        ranks = [pid for pid in descendants(attempts.process.pid) if b"--score" in _command_of(pid)]
        if not ranks:
            return None
        what = generator.choice(["a rank", "the agent"])
        if what == "a rank":
            os.kill(generator.choice(ranks), signal.SIGKILL)
        else:
            attempts.kill()
        attempts.process.wait()
        attempts.start()
        return what

    try:
        return storm(folder / "torchrun", attempts, kill, options.kills, options.seed, PAUSES["torchrun"])
    finally:
        attempts.kill()


def _command_of(pid: int) -> bytes:
    with suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=("ray", "torchrun", "both"), default="both")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=0.01, help="that reading a sample takes")
    parser.add_argument("--what", nargs="+", choices=("driver", "worker", "node"), default=["driver", "worker", "node"])
    parser.add_argument("--score", nargs=3, metavar=("OUTPUT", "PROBES", "WHERE"), help="what the killed processes run")
    options = parser.parse_args()
    if options.score:
        output, probes, where = options.score
        engine = where if where == "torchrun" else Ray(workers=2, address=where)
        run(Path(output), Path(probes), options.samples, options.seconds, engine)
        return
    folder = Path(tempfile.mkdtemp(prefix="diffin-chaos-"))
    make_probes(folder / "probes")
    run(folder / "reference", folder / "probes", options.samples, 0.0, "local")
    fine = True
    for engine, storm_of in (("ray", ray_storm), ("torchrun", torchrun_storm)):
        if options.engine not in (engine, "both"):
            continue
        (folder / engine).mkdir()
        rows = storm_of(folder, folder / "probes", options)
        print(f"\n{engine}: {options.samples:,} samples in parts of {PART_ROWS}")
        print(f"{'':>3} {'killed':10} {'after':>9} {'parts there':>12} {'written again':>14}")
        for number, (what, after, there, again) in enumerate(rows, start=1):
            print(f"{number if number < len(rows) else '':>3} {what:10} {after:>9} {there:>12,} {again:>14}")
        good, sentence = verdict(folder / engine, folder / "reference", options.samples)
        fine &= good
        print(sentence)
    if fine:
        shutil.rmtree(folder)
    else:
        raise SystemExit(f"see {folder}")


if __name__ == "__main__":
    main()
