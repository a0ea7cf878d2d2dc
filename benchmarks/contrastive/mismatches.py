"""Captions that belong to other pictures: how well they are found, and what leaving out the suspects brings.

    python benchmarks/contrastive/mismatches.py            # hours: 10, 20 and 30 % of the captions swapped, three seeds
    python benchmarks/contrastive/mismatches.py --quick    # minutes: 20 %, one seed, half the steps

Captions change hands among pairs of one source. A model is trained on everything, and two on complementary halves: what a
model that has never seen a pair makes of it cannot have been learned by heart. Prints the average precision of every signal
and R@1 after as many of its first suspects are left out as captions were swapped. The test sets, whose captions are right,
are seen by nothing else. What is finished is kept in benchmarks/.cache/contrastive/mismatches.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from pruning import UNROLLED, key_of
from scipy.stats import rankdata
from selecting import Floats, Indices
from sklearn.metrics import average_precision_score

from data import CACHE
from diffin.files import read_json, write_json
from diffin.trajectory import Trajectory
from signals import influences, seen
from training import Pool, Recipe

from results import interval  # isort: skip
from table import Table, machine  # isort: skip

CLEANED = (
    "nothing",
    "at random",
    "mean clip-score",
    "mean loss",
    "influence",
    "held-out clip-score",
    "fused",
    "the truth",
)
"""By what suspects are left out."""

_FUSED = ("mean clip-score", "mean loss", "held-out clip-score", "held-out loss")


@dataclass(frozen=True)
class Effort:
    """What is done, and where it is kept."""

    seeds: tuple[int, ...]
    shares: tuple[float, ...]
    cleaned: tuple[str, ...]
    recipe: Recipe
    folder: Path


FULL = Effort((0, 1, 2), (0.1, 0.2, 0.3), CLEANED, Recipe(), CACHE / "mismatches" / "full")
QUICK = Effort(
    (0,), (0.2,), ("nothing", "mean clip-score", "fused", "the truth"), Recipe(steps=300, query=256),
    CACHE / "mismatches" / "quick",
)  # fmt: skip


class Cells:
    """One split of the data with captions swapped: what signals say of it, and a file for each that is cleaned by."""

    def __init__(self, effort: Effort, seed: int, share: float) -> None:
        self.effort, self.seed, self.share = effort, seed, share
        self.folder = effort.folder / f"{share:g}-seed-{seed}-{key_of(effort.recipe)}"
        self.folder.mkdir(parents=True, exist_ok=True)

    @cached_property
    def pool(self) -> Pool:
        return Pool(self.seed, self.effort.recipe, self.share)

    def carry_out(self) -> None:
        """Do what has not been done."""
        path = self.folder / "precision.json"
        if not path.exists():
            print(f"{self.share:.0%} mismatched, seed {self.seed}: signals", file=sys.stderr, flush=True)
            wrong = self.pool.wrong
            found = {name: float(average_precision_score(wrong, one)) for name, one in self.signals.items()}
            write_json(path, {"wrong": float(wrong.mean()), "precision": found})
        for name in self.effort.cleaned:
            path = self.folder / f"without-{name}.json"
            if not path.exists():
                print(f"{self.share:.0%} mismatched, seed {self.seed}: without {name}", file=sys.stderr, flush=True)
                write_json(
                    path, self.pool.retrieval(self.pool.fit(self._kept(name), None, 1000 * (self.seed + 1) + 100))
                )

    def _kept(self, name: str) -> Indices:
        """As many left out as captions are wrong: what a person would have to know or guess, the same for every signal."""
        count = 0 if name == "nothing" else int(self.pool.wrong.sum())
        match name:
            case "nothing" | "at random":
                suspicion = np.random.default_rng([self.seed, 9]).random(len(self.pool))
            case "the truth":
                suspicion = self.pool.wrong.astype(np.float64)
            case _:
                suspicion = self.signals[name]
        return np.sort(np.argsort(suspicion, kind="stable")[: len(suspicion) - count])

    @cached_property
    def signals(self) -> dict[str, Floats]:
        """By name, Float64[ndarray, "N"], the larger the more suspected; computed once."""
        path = self.folder / "signals.npz"
        if not path.exists():
            found = self._signals()
            part = path.with_suffix(".part.npz")
            np.savez(part, **found)
            part.rename(path)
        with np.load(path) as held:
            return dict(held)

    def _signals(self) -> dict[str, Floats]:
        pool, everything = self.pool, np.arange(len(self.pool), dtype=np.int64)
        found = seen(pool, self._trained("whole", everything)).signals()
        found["influence"] = influences(pool, [self.folder / "whole"], UNROLLED, self.folder / "unrolled").mean(axis=1)
        half = np.random.default_rng([self.seed, 8]).permutation(len(pool)) % 2
        held_out: dict[str, Floats] = {}
        for which in range(2):
            unseen = half == which
            for name, one in seen(pool, self._trained(f"half-{which}", everything[~unseen])).signals().items():
                held_out.setdefault(name, np.zeros(len(pool)))[unseen] = one[unseen]
        found["held-out clip-score"], found["held-out loss"] = held_out["mean clip-score"], held_out["mean loss"]
        found["fused"] = np.mean([rankdata(found[name]) for name in _FUSED], axis=0)
        found["fused with influence"] = np.mean([rankdata(found[name]) for name in (*_FUSED, "influence")], axis=0)
        return found

    def _trained(self, name: str, indices: Indices) -> Trajectory:
        folder = self.folder / name
        if not folder.is_dir() or not Trajectory.open(folder).complete:
            shutil.rmtree(folder, ignore_errors=True)
            self.pool.fit(indices, folder, 1000 * (self.seed + 1) + len(name))
        return Trajectory.open(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the quick form")
    parser.add_argument("--seeds", nargs="+", type=int, help="these seeds only")
    parser.add_argument("--shares", nargs="+", type=float, help="these shares only")
    parser.add_argument("--cleaned", nargs="*", help="clean by these only")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    asked = parser.parse_args()
    effort = QUICK if asked.quick else FULL
    for name in ("seeds", "shares", "cleaned"):
        if (given := getattr(asked, name)) is not None:
            effort = replace(effort, **{name: tuple(given)})
    torch.set_num_threads(1)
    logging.getLogger("diffin").setLevel(logging.ERROR)
    if not asked.table:
        for seed in effort.seeds:
            for share in effort.shares:
                Cells(effort, seed, share).carry_out()
    print(tables(effort.folder))


def tables(folder: Path) -> str:
    """Average precision of every signal, and R@1 after cleaning, by share."""
    precision: dict[str, dict[str, list[float]]] = {}
    recall: dict[str, dict[str, list[float]]] = {}
    for place in sorted(folder.glob("*-seed-*")):
        share = place.name.partition("-")[0]
        for path in place.glob("*.json"):
            held = read_json(path)
            if path.stem == "precision":
                for name, one in {**held["precision"], "(share that is wrong)": held["wrong"]}.items():
                    precision.setdefault(name, {}).setdefault(share, []).append(one)
            else:
                recall.setdefault(path.stem.removeprefix("without-"), {}).setdefault(share, []).append(
                    held["mean"]["R@1"]
                )
    return "\n".join(
        [
            _table("Average precision in % of finding mismatched captions", "signal", precision),
            _table("R@1 in % when as many pairs are left out as are mismatched", "left out by", recall),
            machine(),
        ]
    )


def _table(title: str, kind: str, found: Mapping[str, Mapping[str, list[float]]]) -> str:
    shares = sorted({share for one in found.values() for share in one}, key=float)
    seeds = max((len(values) for one in found.values() for values in one.values()), default=0)
    table = Table(f"{title}, {seeds} seed{'s' * (seeds != 1)}", kind, *(f"{float(s):.0%} mismatched" for s in shares))
    for name in sorted(found, key=lambda name: -np.mean([np.mean(values) for values in found[name].values()])):
        table.add(name, *(interval(found[name].get(share, [])) for share in shares))
    return table.markdown()


if __name__ == "__main__":
    main()
