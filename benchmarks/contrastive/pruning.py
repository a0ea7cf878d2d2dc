"""How well a small CLIP retrieves when a part of its pairs is kept: what influence chooses, against scores in use.

    python benchmarks/contrastive/pruning.py            # hours: five shares, three seeds
    python benchmarks/contrastive/pruning.py --quick    # minutes: two shares, one seed, few methods, half the steps

Emoji of one vendor and clip art make the pool; emoji of another vendor and held-out clip art are retrieved (see training.py).
Two trainings on all of the pool are recorded; every selection but a random one goes by them. Every subset is trained on from
scratch for the same number of steps, and the test sets are seen by nothing else. What is finished is kept in
benchmarks/.cache/contrastive/pruning, a file for each training; a run that was stopped goes on. Prints two tables, and draws
R@1.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
import time
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from results import draw, tables
from selecting import Floats, Indices, distinct, of_kinds, ordered

import diffin
from data import CACHE
from diffin.files import read_json, write_json
from diffin.trajectory import Trajectory
from signals import influences, seen
from training import Pool, Recipe, embedded

FRACTIONS = (0.1, 0.2, 0.3, 0.5, 0.7)
METHODS = (
    "random", "clip-score", "mean clip-score", "loss", "el2n", "tracin", "influence", "distinct", "clip-score+distinct",
    "influence+distinct", "kinds+distinct",
)  # fmt: skip
_KINDS = 100
_REPEATS = 2
"""Trainings on everything, recorded; what goes by one is the mean over all."""


@dataclass(frozen=True)
class Effort:
    """What is done, and where it is kept."""

    seeds: tuple[int, ...]
    fractions: tuple[float, ...]
    methods: tuple[str, ...]
    recipe: Recipe
    folder: Path


FULL = Effort((0, 1, 2), FRACTIONS, METHODS, Recipe(), CACHE / "pruning" / "full")
QUICK = Effort(
    (0,), (0.1, 0.3), ("random", "clip-score", "distinct", "tracin", "kinds+distinct"), Recipe(steps=300, query=256),
    CACHE / "pruning" / "quick",
)  # fmt: skip


def key_of(recipe: Recipe) -> str:
    """Part of the name of what is kept, so that nothing of another recipe is taken for it."""
    return sha256(json.dumps(asdict(recipe), sort_keys=True).encode()).hexdigest()[:8]


class Cells:
    """One split of the data: what is known of its pool, and a file for every method and share."""

    def __init__(self, effort: Effort, seed: int) -> None:
        self.effort, self.seed = effort, seed
        self.folder = effort.folder / f"seed-{seed}-{key_of(effort.recipe)}"
        self.folder.mkdir(parents=True, exist_ok=True)

    @cached_property
    def pool(self) -> Pool:
        return Pool(self.seed, self.effort.recipe)

    def carry_out(self) -> None:
        """Do what has not been done."""
        everything = self.folder / "everything.json"
        if not everything.exists():
            write_json(everything, {"results": [self._trained(np.arange(len(self.pool)), n) for n in range(_REPEATS)]})
        for fraction in self.effort.fractions:
            for method in self.effort.methods:
                path = self.folder / f"{method}-{fraction:g}.json"
                if not path.exists():
                    print(f"seed {self.seed}: {method} {fraction:.0%}", file=sys.stderr, flush=True)
                    write_json(path, self._cell(method, fraction))

    def _cell(self, method: str, fraction: float) -> dict[str, Any]:
        pool = self.pool
        kept = self.order(method)[: round(fraction * len(pool))]
        captions = pool.captions[kept]
        return {
            "results": [self._trained(kept, 100)],
            "emoji": float((pool.sources[kept] == 0).mean()),
            "captions": len(set(captions.tolist())) / len(captions),
        }

    def _trained(self, indices: Indices, number: int) -> dict[str, Any]:
        start, folder = time.perf_counter(), self._whole(number) if number < _REPEATS else None
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)  # of a run that was stopped
        model = self.pool.fit(np.sort(indices), folder, 1000 * (self.seed + 1) + number)
        seconds = time.perf_counter() - start
        return {**self.pool.retrieval(model), "seconds": seconds}

    def order(self, method: str) -> Indices:
        """Int64[ndarray, "N"], the pool by a method, best first."""
        name, _, how = method.partition("+")
        if name in ("random", "distinct"):
            found = np.random.default_rng([self.seed, 7]).permutation(len(self.pool))
        else:
            found = ordered(self._score(name))
        return distinct(found, self.pool.captions.tolist()) if "distinct" in (name, how) else found

    def _score(self, name: str) -> Floats:
        """Float64[ndarray, "N"], lowest for what to keep first."""
        match name:
            case "tracin":
                return self._influences(name, diffin.TracIn()).mean(axis=1)
            case "influence":
                return self._influences("unrolled", UNROLLED).mean(axis=1)
            case "kinds":
                return of_kinds(self._influences("unrolled", UNROLLED), self._features(), _KINDS, self.seed)
            case "el2n":
                return -self._signals[name]
            case _:
                return self._signals[name]

    def _influences(self, name: str, estimator: Any) -> Floats:
        return influences(self.pool, self._recorded, estimator, self.folder / name)

    @cached_property
    def _signals(self) -> dict[str, Floats]:
        each = [seen(self.pool, Trajectory.open(folder)).signals() for folder in self._recorded]
        return {name: np.mean([one[name] for one in each], axis=0) for name in each[0]}

    def _features(self) -> Any:
        task, final = self.pool.task(), Trajectory.open(self._recorded[0]).final
        assert final is not None
        task.model.load_state_dict(final.state)
        return torch.cat(embedded(task.model, self.pool.train), dim=1).numpy()

    @cached_property
    def _recorded(self) -> list[Path]:
        """The trainings on everything, repeated if they are not there or not whole."""
        for number in range(_REPEATS):
            folder = self._whole(number)
            if not folder.is_dir() or not Trajectory.open(folder).complete:
                self._trained(np.arange(len(self.pool)), number)
        return [self._whole(number) for number in range(_REPEATS)]

    def _whole(self, number: int) -> Path:
        return self.folder / f"whole-{number}"


UNROLLED = diffin.Unrolled(propagation="steps", hessian="gauss-newton")
"""With exact products the adjoint grows a thousandfold through the first 150 steps, where the training is erratic."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the quick form")
    parser.add_argument("--seeds", nargs="+", type=int, help="these seeds only")
    parser.add_argument("--methods", nargs="+", help="these methods only")
    parser.add_argument("--fractions", nargs="+", type=float, help="these shares only")
    parser.add_argument("--table", action="store_true", help="only print and draw what is there")
    asked = parser.parse_args()
    effort = QUICK if asked.quick else FULL
    for name in ("seeds", "methods", "fractions"):
        if given := getattr(asked, name):
            effort = replace(effort, **{name: tuple(given)})
    torch.set_num_threads(1)
    logging.getLogger("diffin").setLevel(logging.ERROR)
    if not asked.table:
        for seed in effort.seeds:
            Cells(effort, seed).carry_out()
    found = _read(effort.folder)
    print(tables(found))
    picture = effort.folder / "pruning.svg"
    picture.write_text(draw(found), encoding="utf-8")
    print(picture)


def _read(folder: Path) -> dict[str, dict[Any, Any]]:
    """Everything that is finished, by seed: cells by (method, share), and the trainings on everything."""
    found: dict[str, dict[Any, Any]] = {}
    for place in sorted(folder.glob("seed-*")):
        cells: dict[Any, Any] = {}
        for path in place.glob("*.json"):
            method, _, fraction = path.stem.rpartition("-")
            cells["everything" if path.stem == "everything" else (method, float(fraction))] = read_json(path)
        if "everything" in cells:
            found[place.name] = cells
    return found


if __name__ == "__main__":
    main()
