"""What two workers do in the time of one, by torchrun and by Ray, and what starting them takes.

    python benchmarks/engines.py                     # 60,000 pictures of Fashion-MNIST, one thread a worker
    python benchmarks/engines.py --samples 20000 --rounds 1

*Steady* is the rate at which parts come to be there, from a quarter of them to nine in ten: without what starts and ends a
run. *Whole* is the time of the command, from its first import to its exit. Every run writes the same parts to the byte, which
is checked. Needs a core for each worker that nothing else uses.
"""

from __future__ import annotations

import argparse
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Subset

from data import dataset, fashion_mnist
from diffin.probes import CheckpointProbes, Probe, ProbeSet, ProbeWriter
from diffin.scoring import Ray, ScoringEngine, score_probes
from diffin.tasks import Classification
from networks import cnn
from table import Table, machine

_CHECKPOINTS = 3
_STEADY = (0.25, 0.9)
_RUNS = [("local", 1), ("torchrun", 1), ("torchrun", 2), ("ray", 1), ("ray", 2)]


def task() -> Classification:
    torch.manual_seed(0)
    return Classification(cnn())


def make_probes(path: Path) -> None:
    model = task().model

    def noise() -> dict[str, Tensor]:
        return {name: 0.02 * torch.randn_like(p) for name, p in model.named_parameters()}

    state = {name: p.detach() for name, p in model.named_parameters()}
    writer = ProbeWriter(path, list(state), {"purpose": "benchmark"})
    for step in range(_CHECKPOINTS):
        writer.write(CheckpointProbes(step, state, (Probe(1.0, noise()),)))
    writer.finish(list(range(_CHECKPOINTS)))


def run(output: Path, probes: Path, engine: str, workers: int, samples: int) -> None:
    """Score, as one of the processes of a run."""
    torch.set_num_threads(1)
    data = fashion_mnist()
    chosen: str | ScoringEngine = Ray(workers=workers, address="local") if engine == "ray" else engine
    pictures = Subset(dataset(data.train_images, data.train_labels), range(samples))
    score_probes(
        task(), ProbeSet.open(probes), pictures, derivatives="ghost", batch_size=64, part_rows=512, output=output,
        progress=False, engine=chosen,
    )  # fmt: skip


def timed(folder: Path, engine: str, workers: int, samples: int, round_: int) -> tuple[float, float]:
    """Samples a second in the middle of a run, and seconds of all of it."""
    output = folder / f"{engine}-{workers}-{round_}"
    start = [sys.executable]
    if engine == "torchrun":
        start += ["-m", "torch.distributed.run", f"--nproc_per_node={workers}"]
    command = [
        *start, str(Path(__file__).resolve()), "--samples", str(samples), "--score", str(output), str(folder / "probes"),
        engine, str(workers),
    ]  # fmt: skip
    token = folder / "token"
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token),
    }  # fmt: skip
    begin = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - begin
    if done.returncode:
        raise SystemExit(f"{engine} with {workers} workers failed:\n{done.stderr[-3000:]}")
    times = sorted(file.stat().st_mtime for file in output.glob("part-*.parquet"))
    first, last = (int(share * (len(times) - 1)) for share in _STEADY)
    return (last - first) * 512 / (times[last] - times[first]), seconds


def check_same(folders: list[Path]) -> None:
    # The manifest also says what the self-check of the derivatives cost, which is never twice the same.
    contents = [{file.name: file.read_bytes() for file in folder.glob("part-*.parquet")} for folder in folders]
    for folder, content in zip(folders, contents, strict=True):
        if differing := [name for name, written in contents[0].items() if content.get(name) != written]:
            raise SystemExit(f"{folder.name} and {folders[0].name} did not write the same bytes of {differing[:3]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=60_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--score", nargs=4, metavar=("OUTPUT", "PROBES", "ENGINE", "WORKERS"), help="one of the runs")
    options = parser.parse_args()
    if options.score:
        output, probes, engine, workers = options.score
        run(Path(output), Path(probes), engine, int(workers), options.samples)
        return
    with tempfile.TemporaryDirectory(prefix="diffin-engines-") as temporary:
        folder = Path(temporary)
        (folder / "token").write_text(secrets.token_hex(32))
        (folder / "token").chmod(0o600)
        make_probes(folder / "probes")
        found: dict[tuple[str, int], list[tuple[float, float]]] = {kind: [] for kind in _RUNS}
        # In turn, so that whatever else the machine does falls on all of them.
        for round_ in range(options.rounds):
            for kind in _RUNS:
                found[kind].append(timed(folder, *kind, options.samples, round_))
        check_same([path for path in folder.iterdir() if path.name.startswith(("local", "torchrun", "ray"))])
    title = f"{options.samples:,} pictures, {_CHECKPOINTS} checkpoints, medians of {options.rounds}; {machine()}"
    table = Table(title, "engine", "workers", "steady, samples/s", "of one worker", "whole, s", "of one worker")
    for engine, workers in _RUNS:
        ratios = [
            (many[0] / one[0], one[1] / many[1])
            for many, one in zip(found[engine, workers], found[engine, 1], strict=True)
        ]
        rate, seconds = (statistics.median(column) for column in zip(*found[engine, workers], strict=True))
        steady, whole = (f"{statistics.median(column):.2f}x" for column in zip(*ratios, strict=True))
        table.add(engine, str(workers), f"{rate:,.0f}", steady, f"{seconds:.1f}", whole)
    print(table.markdown())


if __name__ == "__main__":
    main()
