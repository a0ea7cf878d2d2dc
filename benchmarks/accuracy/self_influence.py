"""Self-influence against the truth: how much worse a sample is done without training on it.

    python benchmarks/accuracy/self_influence.py [CASE ...] [--seeds 0 1 2] [--samples 200]

For each of some training samples the recorded run is trained again without it, and its own loss is compared. Printed as
Markdown: Spearman with what each estimator says; its error over the size of the truth; how well it finds the flipped labels
among all samples (area under the ROC curve), which is another question; and its cost over a plain training. Medians over the
seeds. Recordings and truths are those of compare.py, or are made.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from torch.utils.data import Subset

sys.path.append(str(Path(__file__).resolve().parents[1]))  # the other benchmarks

from measuring import plain_seconds, timed
from study import CACHE

import diffin
from cases import Case, case, record
from diffin.evaluation import leave_one_out
from diffin.tasks import Classification
from table import Table, machine

DEFAULT = ("mlp-sgd+flips", "mlp-adamw+flips", "mlp-relu+flips")
ESTIMATORS: dict[str, tuple[Any, int | None]] = {
    "Unrolled, rank 64": (diffin.Unrolled(), 64),
    "Unrolled, rank 16": (diffin.Unrolled(), 16),
    "Unrolled, rank 128": (diffin.Unrolled(), 128),
    "DiffIn (Eq. 12)": (diffin.DiffIn(), None),
    "TracIn": (diffin.TracIn(), None),
}
"""Those that score all samples, each with its rank."""

PAIRS = {
    "Unrolled by segments, a query for each sample": diffin.Unrolled(propagation="segments"),
    "Unrolled, a query for each sample": diffin.Unrolled(),
}
"""By pairwise attribution of the samples to themselves; those that were left out only."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", default=DEFAULT, help="names of cases.py")
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2))
    parser.add_argument("--samples", type=int, default=200, help="left out one by one")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    header = [cell for name in arguments.cases for cell in (name, "error", "flips found", "cost")]
    table = Table("Self-influence against retraining without the sample", "", *header)
    found = {
        name: [_answers(case(name, seed=seed), seed, arguments.samples) for seed in arguments.seeds]
        for name in arguments.cases
    }
    for label in (*ESTIMATORS, *PAIRS, "loss of the sample", "loss, mean over checkpoints"):
        cells = []
        for answers in found.values():
            columns = zip(*(answer[label] for answer in answers), strict=True)
            agreement, error, area, cost = (statistics.median(column) for column in columns)
            cells.append(f"{agreement:.3f}")
            cells += [f"{value:.2f}" if np.isfinite(value) else "-" for value in (error, area)]
            cells.append(f"{cost:.1f}" if cost else "-")
        table.add(label, *cells)
    print(f"{machine()}; seeds {', '.join(map(str, arguments.seeds))}\n")
    print(table.markdown())


def _answers(studied: Case, seed: int, samples: int) -> dict[str, tuple[float, float, float, float]]:
    """By estimator: agreement, relative error, area, and seconds over those of a plain training."""
    folder = CACHE / f"{studied.name}-{seed}"
    run = folder / "runs" / "0"
    if not run.exists():
        record(studied, run)
    trajectory = diffin.Trajectory.open(run)
    assert trajectory.final is not None  # a complete recording has one
    model = studied.build_model().eval()
    model.load_state_dict(trajectory.final.state)
    task = Classification(model)
    chosen = np.sort(np.random.default_rng(seed).choice(len(studied.train), samples, replace=False))
    removed = leave_one_out(
        task,
        trajectory,
        studied.train,
        Subset(studied.train, chosen.tolist()),
        samples=chosen,
        query_samples=range(samples),
        output=folder / "truths" / f"self-{samples}",
        progress=False,
    )
    assert removed.per_query is not None  # it was asked for
    truth = removed.per_query.diagonal()
    plain = plain_seconds(studied)
    answers = {}
    for label, (estimator, rank) in ESTIMATORS.items():
        scores, seconds = timed(
            lambda estimator=estimator, rank=rank: diffin.self_influence(
                task, trajectory, studied.train, estimator=estimator, rank=rank, progress=False
            )
        )
        found = scores.influence
        answers[label] = (
            float(spearmanr(found[chosen], truth).statistic), _error(found[chosen], truth), _area(-found, studied),
            seconds / plain,
        )  # fmt: skip
    asked = Subset(studied.train, chosen.tolist())
    for label, estimator in PAIRS.items():
        with tempfile.TemporaryDirectory() as output:
            start = time.process_time()
            pairs = diffin.attribute(
                task, trajectory, studied.train, asked, estimator=estimator, matrix=True, output=output, progress=False
            )
            seconds = time.process_time() - start
            own = np.concatenate([part for _, part in pairs.matrix()])[chosen].diagonal()
        answers[label] = (
            float(spearmanr(own, truth).statistic), _error(own, truth), float("nan"), seconds / plain
        )  # fmt: skip
    inputs, targets = studied.train.tensors
    with torch.inference_mode():
        final = F.cross_entropy(model(inputs), targets, reduction="none").numpy()
    for label, loss in (("loss of the sample", final), ("loss, mean over checkpoints", scores.loss)):
        agreement = float(spearmanr(loss[chosen], -truth).statistic)
        answers[label] = (agreement, float("nan"), _area(loss, studied), 0.0)
    return answers


def _error(found: np.ndarray, truth: np.ndarray) -> float:
    return float(np.linalg.norm(found - truth) / np.linalg.norm(truth))


def _area(suspicion: np.ndarray, studied: Case) -> float:
    return float(roc_auc_score(studied.flipped.numpy(), suspicion))


if __name__ == "__main__":
    main()
