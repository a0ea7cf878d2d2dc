"""How well the parameters of a training without some samples are foretold, by retraining without them.

    python benchmarks/accuracy/displacement.py [CASE ...] [--orders 4] [--draws 3]

A random 1 % and 5 % of the training set are left out (weight 0, batches as they are otherwise), and the displacement of
the parameters, theta(with) - theta(without), is held against `diffin.parameter_influence`: the cosine of the two, and
|predicted - true| / |true|. There are two truths: that of the recorded order, and the mean over other orders of the data.
Medians over draws of the set. Recordings that `compare.py` has left are read; others are made in a temporary folder.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from study import CACHE

import diffin
from cases import Case, case, record
from diffin import vectors
from diffin.estimators import Estimator
from diffin.parameters import parameter_influence
from diffin.rerun import Rerun
from diffin.rerun.batches import shuffled_order
from diffin.rerun.many import choose_manner, final_states
from diffin.sources import open_source
from diffin.tasks import Classification
from diffin.vectors import Vector
from table import Table, machine

CASES = ("mlp-sgd+flips", "mlp-adamw+flips", "cnn-sgd-plain-gelu+flips")
FRACTIONS = (0.01, 0.05)
_ORDERS_SEED = 2000

ESTIMATORS: dict[str, Estimator] = {
    "Unrolled, steps": diffin.Unrolled(propagation="steps"),
    "Unrolled, segments": diffin.Unrolled(propagation="segments"),
    "Unrolled, segments, rank 3": diffin.Unrolled(propagation="segments", rank=3),
    "Replay": diffin.Replay(),
    "InverseHessian, damping .01": diffin.InverseHessian(),
    "InverseHessian, damping .1": diffin.InverseHessian(damping=0.1),
    "DiffIn (Eq. 9)": diffin.DiffIn(),
    "TracIn": diffin.TracIn(),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", default=list(CASES))
    parser.add_argument("--orders", type=int, default=4, help="other orders of the data, for the expected displacement")
    parser.add_argument("--draws", type=int, default=3, help="sets left out, of each size")
    parser.add_argument("--seed", type=int, default=0, help="of the case")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("diffin").setLevel(logging.ERROR)  # DiffIn and TracIn say that they are of plain SGD
    print(f"{machine()}; {arguments.draws} draws, {arguments.orders} other orders\n", flush=True)
    for name in arguments.cases:
        studied = case(name, seed=arguments.seed)
        with _recorded(studied, arguments.seed) as trajectory:
            print(_table(studied, trajectory, arguments.orders, arguments.draws).markdown(), flush=True)


@contextmanager
def _recorded(studied: Case, seed: int) -> Iterator[diffin.Trajectory]:
    kept = CACHE / f"{studied.name}-{seed}" / "runs" / "0"
    if kept.is_dir():
        yield diffin.Trajectory.open(kept)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield record(studied, Path(folder) / "run")[1]


def _table(studied: Case, trajectory: diffin.Trajectory, orders: int, draws: int) -> Table:
    task, size = Classification(studied.build_model()), len(studied.train)
    generator = np.random.default_rng(0)
    sets = [
        np.sort(generator.choice(size, round(fraction * size), replace=False))
        for fraction in FRACTIONS
        for _ in range(draws)
    ]
    start = time.perf_counter()
    own, expected = _truths(task, trajectory, studied, sets, orders)
    print(f"{studied.name}: retrained in {time.perf_counter() - start:.0f} s", flush=True)
    columns = [
        f"{truth} {100 * fraction:g} %: cosine, error" for fraction in FRACTIONS for truth in ("own", "expected")
    ]
    table = Table(f"Displacement of the parameters, {studied.name}", "by", *columns, "seconds a set")
    by_fraction = np.array_split(np.arange(len(sets)), len(FRACTIONS))
    table.add("own order, for the expected", *_cells(own, [own, expected], by_fraction, skip=0), "")
    for name, estimator in ESTIMATORS.items():
        start = time.perf_counter()
        try:
            found = [
                parameter_influence(task, trajectory, studied.train, chosen, estimator=estimator, progress=False).vector
                for chosen in sets
            ]
        except diffin.DiffinError as error:
            table.add(name, *[str(error)[:40]] * len(columns), "")
            continue
        seconds = (time.perf_counter() - start) / len(sets)
        table.add(name, *_cells(found, [own, expected], by_fraction), f"{seconds:.2f}")
    return table


def _truths(
    task: Classification, trajectory: diffin.Trajectory, studied: Case, sets: Sequence[np.ndarray], orders: int
) -> tuple[list[Vector], list[Vector]]:
    """theta(with) - theta(without) of every set: in the recorded order, and the mean over others."""
    train = open_source(studied.train)
    recorded = Rerun(task, trajectory, train)
    others = [
        Rerun(
            task, trajectory, train, order=shuffled_order(recorded.log, len(studied.train), _ORDERS_SEED + number, task)
        )
        for number in range(orders)
    ]
    own, *displaced = (_displacements(rerun, sets, len(studied.train)) for rerun in (recorded, *others))
    mean = []
    for of_set in zip(*displaced, strict=True):
        total = vectors.zeros_like(of_set[0])
        for displacement in of_set:
            total = vectors.add(total, displacement, 1 / orders)
        mean.append(total)
    return own, mean


def _displacements(rerun: Rerun, sets: Sequence[np.ndarray], size: int) -> list[Vector]:
    weights = torch.ones(1 + len(sets), size, dtype=torch.float64)
    for row, chosen in zip(weights[1:], sets, strict=True):
        row[torch.from_numpy(chosen)] = 0.0
    with rerun.entered():
        whole, *without = (state.parameters for state in final_states(rerun, weights, choose_manner(rerun)))
    return [vectors.add(whole, parameters, -1.0) for parameters in without]


def _cells(
    found: Sequence[Vector],
    truths: Sequence[Sequence[Vector]],
    by_fraction: Sequence[np.ndarray],
    skip: int | None = None,
) -> list[str]:
    """Medians of cosine and relative error, by fraction and truth."""
    cells = []
    for numbers in by_fraction:
        for position, truth in enumerate(truths):
            pairs = [_agreement(found[number], truth[number]) for number in numbers]
            cosine, error = (statistics.median(column) for column in zip(*pairs, strict=True))
            cells.append("" if position == skip else f"{cosine:.3f}, {error:.3g}")
    return cells


def _agreement(found: Vector, truth: Vector) -> tuple[float, float]:
    missed = vectors.norm(vectors.add(found, truth, -1.0))
    cosine = vectors.dot(found, truth) / ((vectors.norm(found) or 1.0) * vectors.norm(truth))
    return cosine, missed / vectors.norm(truth)


if __name__ == "__main__":
    main()
