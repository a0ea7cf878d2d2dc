"""Run by test_parallel: one of the processes that torchrun starts, or, without torchrun, the only one.

Usage: probes_of_ranks.py RUNS OUTPUT. Trains into RUNS what is not there, and builds the probes of every case into OUTPUT.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import Dataset, TensorDataset

from diffin import DiffIn, InverseHessian, MoSo, TracIn, Trajectory, Unrolled, build_probes
from diffin.errors import TaskError
from diffin.estimators import ProbingEstimator
from diffin.own_influence import asking_itself
from diffin.parallel import ranks_of_torchrun
from diffin.rerun import Rerun
from diffin.sources import open_source
from diffin.task import PerSampleLoss
from diffin.tasks import Classification
from training import record

COUNT, QUERY = 24, 13


def model(kind: str) -> nn.Module:
    torch.manual_seed(0)
    middle: dict[str, list[nn.Module]] = {
        "plain": [nn.GELU()],
        "dropout": [nn.GELU(), nn.Dropout(0.2)],
        "batchnorm": [nn.BatchNorm1d(6), nn.GELU()],
    }
    return nn.Sequential(nn.Linear(4, 6), *middle[kind], nn.Linear(6, 3)).double()


def data(count: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 4, generator=generator, dtype=torch.float64)
    return TensorDataset(inputs, torch.randint(0, 3, (count,), generator=generator))


TRAIN, ASKED = data(COUNT, 1), data(QUERY, 2)

CASES: dict[str, tuple[str, ProbingEstimator]] = {
    "tracin": ("plain", TracIn()),
    "diffin": ("plain", DiffIn(batch_size=9)),
    "moso": ("plain", MoSo()),
    "inverse-hessian": ("plain", InverseHessian(damping=0.1)),
    "segments": ("plain", Unrolled(propagation="segments", curvature_samples=11, hessian="exact")),
    "segments-gauss-newton": ("plain", Unrolled(propagation="segments", curvature_samples=11, hessian="gauss-newton")),
    "segments-difference": ("plain", Unrolled(propagation="segments", curvature_samples=11, hessian="difference")),
    "steps": ("plain", Unrolled(propagation="steps", states=3, hessian="exact")),
    "steps-gauss-newton": ("plain", Unrolled(propagation="steps", states=3, hessian="gauss-newton")),
    "steps-difference": ("plain", Unrolled(propagation="steps", states=3, hessian="difference")),
    "steps-adam": ("adam", Unrolled(propagation="steps", states=3, hessian="exact")),
    "steps-one-by-one": ("single", Unrolled(propagation="steps", states=3, hessian="exact")),
    "steps-dropout": ("dropout", Unrolled(propagation="steps", states=3, hessian="exact")),
    "steps-batchnorm": ("batchnorm", Unrolled(propagation="steps", states=3, hessian="exact")),
    "itself": ("plain", asking_itself(Unrolled(propagation="segments", hessian="exact"), rank=4)),
}


class Unreadable(Dataset):
    """A query of which the second process cannot read its share."""

    def __len__(self) -> int:
        return QUERY

    def __getitem__(self, index: int):
        if os.environ.get("RANK") == "1" and index == QUERY - 2:
            raise OSError("the disk is gone")
        return ASKED[index]


def train(runs: Path) -> None:
    for kind in {kind for kind, _ in CASES.values()}:
        task = Classification(model(kind if kind in ("dropout", "batchnorm") else "plain"))
        size = 1 if kind == "single" else 5
        parameters = task.model.parameters()
        optimizer = torch.optim.AdamW(parameters, lr=0.01) if kind == "adam" else None
        record(runs / kind, task, TRAIN, steps=12, batch_size=size, optimizer=optimizer)


def build(runs: Path, output: Path, engine: str) -> None:
    for name, (kind, estimator) in CASES.items():
        task = Classification(model(kind if kind in ("dropout", "batchnorm") else "plain"))
        build_probes(
            task, Trajectory.open(runs / kind), TRAIN, query=ASKED, estimator=estimator, output=output / name, batch_size=4,
            progress=False, engine=engine,
        )  # fmt: skip


class Counted(Dataset):
    """A query that notes which of its samples are read."""

    def __init__(self) -> None:
        self.read: list[int] = []

    def __len__(self) -> int:
        return QUERY

    def __getitem__(self, index: int):
        self.read.append(index)
        return ASKED[index]


def look(runs: Path, output: Path, rank: str) -> None:
    """Write down what this process took of the steps of every training, and of a query."""
    with ranks_of_torchrun(torch.device("cpu")) as ranks:
        shared = {}
        for kind in ("plain", "adam", "single", "dropout", "batchnorm"):
            task = Classification(model(kind if kind in ("dropout", "batchnorm") else "plain"))
            shared[kind] = Rerun(task, Trajectory.open(runs / kind), open_source(TRAIN), ranks=ranks).shared
    (output / f"shared-{rank}.json").write_text(json.dumps(shared))
    whole = model("plain")
    fully_shard(whole, mesh=init_device_mesh("cpu", (2,)))
    try:
        PerSampleLoss(Classification(whole))
    except TaskError as error:
        (output / f"sharded-{rank}.txt").write_text(str(error))
    query = Counted()
    build_probes(
        Classification(model("plain")), Trajectory.open(runs / "plain"), TRAIN, query=query, estimator=TracIn(),
        output=output / "counted", progress=False, engine="torchrun",
    )  # fmt: skip
    # What is looked at before the building is the same few samples in every process.
    last = query.read[-1]
    first = last
    for index in reversed(query.read):
        if index != first and index != first - 1:
            break
        first = index
    (output / f"read-{rank}.json").write_text(json.dumps([first, last + 1]))


def main() -> None:
    torch.set_num_threads(1)
    runs, output = Path(sys.argv[1]), Path(sys.argv[2])
    build(runs, output, "torchrun")
    look(runs, output, os.environ["RANK"])
    try:
        build_probes(
            Classification(model("plain")), Trajectory.open(runs / "plain"), TRAIN, query=Unreadable(),
            estimator=TracIn(), output=output / "failed", progress=False, engine="torchrun",
        )  # fmt: skip
    except Exception as error:
        (output / f"failure-{os.environ['RANK']}.txt").write_text(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
