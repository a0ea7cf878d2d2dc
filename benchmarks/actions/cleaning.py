"""Finding wrong labels: `diffin clean` beside every single signal, and what retraining on the cleaned data brings.

A cell is a data set, a kind of noise, a net that stopped early or knows its labels by heart, and a seed. Each is kept as a
JSON file, so that an interrupted run goes on. All signals come from the same recorded training. Retraining takes a fixed
number of steps, that of the early-stopped training, on what is left after dropping: as many by the best single signal (chosen
with knowledge of the answer) as `clean` drops.

    python benchmarks/actions/cleaning.py --quick              # minutes
    python benchmarks/actions/cleaning.py --seeds 0 1 2 --influence     # hours; influence on a query and by Unrolled too
    python benchmarks/actions/cleaning.py --table              # what is there
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from cleaning_cells import MEMORISED, REGIMES, TABLE_DATA, Cell, accuracy_of, record
from noise import KINDS
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor
from torch.utils.data import TensorDataset

import diffin
from diffin.actions.clean import Suspects, clean
from diffin.tasks import Classification

sys.path.append(str(Path(__file__).resolve().parents[1]))
from table import Table, machine

CACHE = Path(__file__).resolve().parents[1] / ".cache" / "actions" / "cleaning"
BINS = 15
DRAWS = 200
QUICK = (("fashion-s", "symmetric-40"), ("mnist", "pair-40"), ("tumours", "symmetric-20"))
FUSED, WITH_QUERY = "clean", "clean, query"
OWN_PARTS = ("neighbours", "left_out")
"""Parts of the fusion, shown beside it and no baselines."""

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


def measure(cell: Cell, influence: bool) -> dict[str, Any]:
    """Everything about one cell."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        made = record(cell, Path(folder) / "run")
        trained = time.perf_counter() - start
        task, train = Classification(made.model), TensorDataset(made.train.inputs, made.train.labels)
        own: list[Any] = [diffin.TracIn()]
        if influence:
            own += [diffin.DiffIn(), diffin.Unrolled()]
        unrolled = diffin.Unrolled(propagation="segments") if influence else None
        alone = clean(task, made.trajectory, train, self_influence=own, progress=False)
        started = time.perf_counter()
        clean(task, made.trajectory, train, progress=False)
        seconds = time.perf_counter() - started
        queried = clean(task, made.trajectory, train, query=made.query, influence=unrolled, progress=False)
    wrong = made.train.wrong
    found: dict[str, Any] = {
        "samples": len(wrong), "rate": float(wrong.mean()), "seconds": {"training": trained, "clean": seconds},
    }  # fmt: skip
    for name, suspects in ((FUSED, alone), (WITH_QUERY, queried)):
        found[name] = {
            "ece": calibration_error(suspects.probability, wrong),
            "noise_rate": suspects.noise_rate,
            "suggestion": float((suspects.suggested[wrong] == made.train.correct.numpy()[wrong]).mean())
            if wrong.any()
            else None,
        }
    if not wrong.any():
        return found
    scores = {FUSED: alone.probability, WITH_QUERY: queried.probability}
    scores |= {name: alone.ranking(name) for name in alone.signals}
    if influence:
        scores["query_influence"] = queried.ranking("query_influence")
    found["auroc"] = {name: float(roc_auc_score(wrong, score)) for name, score in scores.items()}
    found["ap"] = {name: float(average_precision_score(wrong, score)) for name, score in scores.items()}
    best = best_single(found["ap"])
    found["difference"] = resampled_difference(wrong, alone.probability, scores[best])
    found["accuracy"] = retrained(
        cell, made.train.inputs, made.train.labels, made.train.correct, alone, scores[best], made.query
    )
    return found


def best_single(precision: dict[str, float]) -> str:
    """The signal of largest average precision, parts of the fusion and what needs a clean query left out."""
    others = {
        name: value
        for name, value in precision.items()
        if name not in (FUSED, WITH_QUERY, *OWN_PARTS, "query_influence")
    }
    return max(others, key=lambda name: others[name])


def calibration_error(probability: Floats, wrong: Bools) -> float:
    """Expected calibration error over ``BINS`` equal bins (Naeini et al. 2015)."""
    bins = np.minimum((probability * BINS).astype(int), BINS - 1)
    shares = [
        (bins == k).mean() * abs(probability[bins == k].mean() - wrong[bins == k].mean()) for k in set(bins.tolist())
    ]
    return float(sum(shares))


def resampled_difference(wrong: Bools, fused: Floats, single: Floats) -> list[float]:
    """Average precision of the fusion less that of a signal: 2.5 %, mean and 97.5 % over resampled samples."""
    generator = np.random.default_rng(0)
    differences = []
    for _ in range(DRAWS):
        rows = generator.integers(len(wrong), size=len(wrong))
        if wrong[rows].any():
            differences.append(
                average_precision_score(wrong[rows], fused[rows]) - average_precision_score(wrong[rows], single[rows])
            )
    low, high = np.quantile(differences, [0.025, 0.975])
    return [float(low), float(np.mean(differences)), float(high)]


def retrained(
    cell: Cell,
    inputs: Tensor,
    labels: Tensor,
    correct: Tensor,
    suspects: Suspects,
    single: Floats,
    query: TensorDataset,
) -> dict[str, float]:
    """Accuracy on clean held-out samples after training anew on what each way of cleaning leaves."""
    steps = cell.recipe.epochs[0] * max(1, len(labels) // cell.recipe.batch_size)
    kept = torch.from_numpy(suspects.kept())
    by_single = torch.from_numpy(np.sort(np.argsort(single, kind="stable")[: len(kept)]))
    everything = torch.arange(len(labels))
    relabelled = torch.from_numpy(suspects.relabelled())
    ways = {
        "nothing": (everything, labels),
        "dropped by clean": (kept, labels),
        "dropped by the best signal": (by_single, labels),
        "relabelled by clean": (everything, relabelled),
        "correct labels": (everything, correct),
    }
    return {
        name: accuracy_of(cell, inputs[rows], given[rows], query, int(correct.max()) + 1, steps=steps, seed=cell.seed)
        for name, (rows, given) in ways.items()
    }


def place(cell: Cell, influence: bool) -> Path:
    """Where the figures of a cell are kept."""
    return CACHE / f"{cell.name}{'-influence' if influence else ''}.json"


def cells(arguments: argparse.Namespace) -> list[Cell]:
    """What was asked for, quick cells first."""
    pairs = QUICK if arguments.quick else [(data, noise) for data in arguments.data for noise in arguments.noise]
    seeds = [0] if arguments.quick else arguments.seeds
    return [
        Cell(data, noise, regime, seed)
        for seed in seeds
        for data, noise in pairs
        for regime in REGIMES
        if not (noise.startswith("human") and data in ("reviews", "tumours"))
    ]


def table(wanted: list[Cell]) -> str:
    """Means over the seeds that are there."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for cell in wanted:
        path = next((p for p in (place(cell, True), place(cell, False)) if p.is_file()), None)
        if path is not None:
            groups.setdefault((cell.data, cell.noise, cell.regime), []).append(json.loads(path.read_text()))
    seeds = [len(found) for found in groups.values()]
    asked = any("query_influence" in f.get("ap", {}) for found in groups.values() for f in found)
    shown = Table(
        f"Average precision and AUROC of finding wrong labels, {min(seeds)} to {max(seeds)} seeds",
        "data", "noise", "net", "clean", "best single signal", "difference [95 %]", "with a clean query",
        *(["influence on it"] if asked else []), "AUROC clean / best", "ECE", "noise rate: found / true",
        "accuracy: as is, by clean, by best, correct",
    )  # fmt: skip
    for (data, noise, regime), found in groups.items():
        if "ap" not in found[0]:
            rates = f"{_mean([f[FUSED]['noise_rate'] for f in found])} / 0"
            ece = _mean([f[FUSED]["ece"] for f in found])
            shown.add(data, noise, regime, *["-"] * (5 + asked), ece, rates, "-")
            continue
        known = set.intersection(*(set(f["ap"]) for f in found))  # some with --influence, some without
        precision = {name: np.mean([f["ap"][name] for f in found]) for name in found[0]["ap"] if name in known}
        best = best_single(precision)
        low, middle, high = np.mean([f["difference"] for f in found], axis=0)
        goal = 0.02 if regime == MEMORISED else 0.0
        mark = "" if middle >= goal else (" (within)" if high >= goal else " (below)")
        ways = ("nothing", "dropped by clean", "dropped by the best signal", "correct labels")
        shown.add(
            data,
            noise,
            regime,
            f"{precision[FUSED]:.3f}",
            f"{precision[best]:.3f} {best}",
            f"{middle:+.3f} [{low:+.3f}, {high:+.3f}]{mark}",
            f"{precision[WITH_QUERY]:.3f}",
            *([f"{precision['query_influence']:.3f}" if "query_influence" in precision else "-"] if asked else []),
            " / ".join(_mean([f["auroc"][name] for f in found]) for name in (FUSED, best)),
            _mean([f[FUSED]["ece"] for f in found]),
            f"{_mean([f[FUSED]['noise_rate'] for f in found])} / {_mean([f['rate'] for f in found])}",
            ", ".join(_mean([f["accuracy"][way] for f in found]) for way in ways),
        )
    return f"{machine()}\n\n{shown.markdown()}"


def _mean(numbers: list[float]) -> str:
    return f"{np.mean(numbers):.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", nargs="+", default=list(TABLE_DATA), help="fashion, fashion-s, mnist, reviews, tumours"
    )
    parser.add_argument("--noise", nargs="+", default=list(KINDS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--influence", action="store_true", help="also Diff-In and Unrolled, on itself and on a query")
    parser.add_argument("--quick", action="store_true", help="six cells, one seed")
    parser.add_argument("--table", action="store_true", help="compute nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    CACHE.mkdir(parents=True, exist_ok=True)
    wanted = cells(arguments)
    for cell in wanted:
        path = place(cell, arguments.influence)
        if arguments.table or path.is_file():
            continue
        found = measure(cell, arguments.influence)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(found, indent=1))
        part.replace(path)
        print(f"{cell.name}: {found.get('difference')}", file=sys.stderr, flush=True)
    print(table(wanted))


if __name__ == "__main__":
    main()
