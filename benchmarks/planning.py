"""A forecast against what it foresaw, and the arithmetic of corpora that nobody scores on two cores.

    python benchmarks/planning.py [--samples 100000] [--rate 4000]

The forecast is that of `diffin diagnose --plan`, from a few hundred samples; then all samples are scored, by one process and
by two of Ray. They come out of the shards of `millions.py`. The second table takes plain inference of `--rate` samples a
second and state as given (measure yours) and scales the rest. Printed as Markdown.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Subset

import diffin
from data import dataset, fashion_mnist
from diffin.cli.planning import duration, size
from diffin.diagnose import Diagnosis, diagnose
from diffin.planning import Machines, plan
from diffin.scoring import Ray
from diffin.sources import WebDataset
from diffin.tasks import Classification
from millions import decoded, made
from networks import cnn
from table import Table, machine

TRAINED = 5_000
CORPORA = {"DataComp small": 12_800_000, "a billion": 10**9, "ten billion": 10**10}
SAMPLE_BYTES = 25_000
MACHINES = {12_800_000: Machines(1, 8), 10**9: Machines(8, 8), 10**10: Machines(64, 8)}
SCORE_RATIO = 2.1
"""What scoring costs over plain inference, as `benchmarks/unrolled.py` measures it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--rate", type=float, default=4000.0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    shards = WebDataset(made(arguments.samples, "webdataset"), decoded, progress=False)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        problem = _recorded(shards, folder / "run")
        trajectory = diffin.Trajectory.open(folder / "run")
        found = diagnose(problem, trajectory, progress=False)
        print(f"{machine()}; {arguments.samples:,} samples\n")
        table = Table("", "scoring", "foreseen, s", "taken, s", "taken over foreseen")
        start = time.perf_counter()
        probes = diffin.build_probes(
            problem.task, trajectory, shards, query=problem.query, estimator=diffin.Unrolled(), output=folder / "probes",
            progress=False,
        )  # fmt: skip
        _row(table, "probes", found.forecast.probe_seconds, time.perf_counter() - start)
        for name, machines, engine in (
            ("one process", Machines(), "local"),
            ("two processes of Ray", Machines(processes=2), Ray(workers=2, address="local")),
        ):
            planned = plan(found, machines=machines)
            start = time.perf_counter()
            diffin.score_probes(
                problem.task, probes, shards, output=folder / name.replace(" ", "-"), engine=engine, progress=False
            )
            _row(table, name, planned.start_seconds + planned.scoring_seconds, time.perf_counter() - start)
    print(table.markdown())
    print(_corpora(found, arguments.rate).markdown())


def _row(table: Table, name: str, foreseen: float, taken: float) -> None:
    table.add(name, f"{foreseen:.1f}", f"{taken:.1f}", f"{taken / foreseen:.2f}")


def _recorded(shards: WebDataset, folder: Path) -> diffin.Problem:
    """A CNN, trained once through the first samples of the shards."""
    torch.manual_seed(0)
    model = cnn()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    few = Subset(diffin.Indexed(shards), range(TRAINED))
    loader = DataLoader(few, batch_size=128, shuffle=True)
    with diffin.Recorder(
        folder, model, optimizer, dataset_size=len(shards), total_steps=len(loader), checkpoints=10
    ) as recorder:
        for inputs, targets, indices in loader:
            F.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
            recorder.step(indices)
            optimizer.zero_grad()
    data = fashion_mnist()
    query = dataset(data.test_images[:1000], data.test_labels[:1000])
    return diffin.Problem(task=Classification(model), train=shards, query=query)


def _corpora(measured: Diagnosis, rate: float) -> Table:
    """Plans for more samples than there are here."""
    table = Table(
        f"Ten states, {rate:,.0f} plain losses a second and process, {SAMPLE_BYTES:,} bytes a sample",
        "corpus", "processes", "scoring", "machine hours", "scores, at most", "data", "storage delivers",
    )  # fmt: skip
    forecast = replace(measured.forecast, checkpoints=10, reading=0.0, measuring=10 * SCORE_RATIO / rate)
    for name, samples in CORPORA.items():
        planned = plan(
            replace(measured, forecast=forecast), samples, machines=MACHINES[samples], sample_bytes=SAMPLE_BYTES
        )
        assert planned.read_bytes is not None
        assert planned.read_rate is not None
        table.add(
            f"{name}, {samples:,}", str(planned.machines.workers), duration(planned.scoring_seconds),
            f"{planned.machine_hours:,.0f}", size(planned.score_bytes), size(planned.read_bytes),
            f"{size(planned.read_rate)}/s",
        )  # fmt: skip
    return table


if __name__ == "__main__":
    main()
