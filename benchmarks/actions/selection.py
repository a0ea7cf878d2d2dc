"""What is left of the accuracy when a part of the data is kept: every method of `diffin select`, at five shares.

    python benchmarks/actions/selection.py            # hours: four data sets, clean and with 20 % wrong labels, three seeds
    python benchmarks/actions/selection.py --quick    # minutes: one data set, one seed, few methods and shares

Every subset is trained on from scratch for the same number of steps, by the same recipe, three times; the test set is seen
by nothing else. What is finished is kept in benchmarks/.cache/actions/selection, a file for each cell; a run that was
stopped goes on, and two with other --data can share the work. Prints one table a data set and noise, and draws it.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from selection_pools import RECIPES, Pool

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

from selection_table import draw, tables

import diffin
from diffin.actions.select import METHODS, Selection, select
from diffin.files import read_json, write_json

CACHE = Path(__file__).resolve().parents[1] / ".cache" / "actions" / "selection"
NOISE = ("clean", "symmetric-20")
FRACTIONS = (0.1, 0.2, 0.3, 0.5, 0.7)
_TRAININGS = 3
"""Of every subset; of a random one, as many subsets."""

_CUTS = (0.0, 0.3, 0.5)
"""What CCS drops is searched for by its authors: the best of these, by the test set, is more than it could be."""

_PUBLISHED = ("moderate", "ccs", "el2n", "grand", "forgetting", "aum")
"""Methods that their authors apply without regard to classes: they stand in the table that way, too."""


@dataclass(frozen=True)
class Effort:
    """What is done.

    Attributes:
        data: names of the data sets.
        noise: kinds.
        seeds: how many.
        fractions: shares to keep.
        methods: as in ``diffin select``, with ``*`` behind those that shall not keep the proportions of the classes, and
            ``@`` and a number for the share that ``ccs`` drops.
        quick: with smaller pools.
        folder: where the cells are kept.
    """

    data: tuple[str, ...]
    noise: tuple[str, ...]
    seeds: int
    fractions: tuple[float, ...]
    methods: tuple[str, ...]
    quick: bool
    folder: Path


FULL = Effort(
    tuple(RECIPES),
    NOISE,
    3,
    FRACTIONS,
    (*METHODS, *(f"{name}*" for name in _PUBLISHED), *(f"ccs@{cut:g}" for cut in _CUTS)),
    False,
    CACHE / "full",
)
QUICK = Effort(
    ("fashion-mlp",),
    NOISE,
    1,
    (0.1, 0.3, 0.7),
    ("random", "iterated", "ccs", "ccs@0.5", "moderate", "influence", "moso", "aum", "el2n"),
    True,
    CACHE / "quick",
)


class Cells:
    """One pool: its training on everything, and a file for each method and share."""

    def __init__(self, effort: Effort, name: str, noise: str, seed: int) -> None:
        self.effort, self.seed, self.label = effort, seed, f"{name} {noise} {seed}"
        self.pool = Pool(name, noise, seed, quick=effort.quick)
        self.folder = effort.folder / f"{name}-{noise}-{seed}"
        self.folder.mkdir(parents=True, exist_ok=True)

    def carry_out(self) -> None:
        """Do what has not been done."""
        everything = self.folder / "everything.json"
        if not everything.exists():
            write_json(everything, self._everything())
        for method in self.effort.methods:
            for fraction in self.effort.fractions:
                path = self.folder / f"{method.replace('*', '-unbalanced')}-{fraction:g}.json"
                if not path.exists():
                    print(f"{self.label}: {method} {fraction:.0%}", file=sys.stderr, flush=True)
                    write_json(path, self._cell(method, fraction))

    def _everything(self) -> dict[str, Any]:
        """Training on the whole pool; the first of the trainings is recorded, and what the methods go by."""
        indices = np.arange(len(self.pool.train), dtype=np.int64)
        part = self.folder / "whole.part"
        shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(self.folder / "whole", ignore_errors=True)
        start = time.perf_counter()
        found = [self._trained(indices, number, None if number else part) for number in range(_TRAININGS)]
        seconds = (time.perf_counter() - start) / _TRAININGS
        part.rename(self.folder / "whole")
        return {"results": found, "training_seconds": seconds}

    def _trained(self, indices: Any, number: int, folder: Path | None = None) -> dict[str, float]:
        accuracy, loss = self.pool.accuracy(self.pool.fit(indices, folder, 1000 * (self.seed + 1) + number))
        return {"accuracy": accuracy, "loss": loss}

    def _cell(self, method: str, fraction: float) -> dict[str, Any]:
        chosen, results = [], []
        name, _, cut = method.removesuffix("*").partition("@")
        for number in range(_TRAININGS):
            if number and name != "random":
                chosen.append(chosen[0])
            else:
                chosen.append(self._selected(name, fraction, number, float(cut) if cut else None, "*" not in method))
            results.append(self._trained(chosen[-1].at(fraction).indices, number))
        cost = chosen[0].cost
        wrong = [float(self.pool.wrong[one.at(fraction).indices].mean()) for one in chosen]
        return {
            "results": results,
            "wrong": float(np.mean(wrong)),
            "trainings": cost.trainings,
            "seconds": cost.seconds,
        }

    def _selected(self, name: str, fraction: float, number: int, cut: float | None, balanced: bool) -> Selection:
        pool = self.pool
        # A folder of its own for what is resumed by round; scores of the whole training are shared by all shares.
        place = self.folder / ("balanced" if balanced else "unbalanced") / f"{name}{cut if cut is not None else ''}"
        whole = None if name == "iterated" else diffin.Trajectory.open(self.folder / "whole")
        return select(
            pool.task(), pool.train, fractions=fraction, method=name, trajectory=whole, query=pool.query, fit=pool.fit,
            seed=100 * self.seed + number, class_balanced=balanced, cut=cut, output=None if name == "random" else place,
            progress=False,
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the quick form")
    parser.add_argument("--data", nargs="+", choices=tuple(RECIPES), help="these data sets only")
    parser.add_argument("--noise", nargs="+", help="these kinds of noise only")
    parser.add_argument("--seeds", type=int, help="how many seeds")
    parser.add_argument("--methods", nargs="+", help="these methods only")
    parser.add_argument("--fractions", nargs="+", type=float, help="these shares only")
    parser.add_argument("--table", action="store_true", help="only print and draw what is there")
    asked = parser.parse_args()
    given = {
        name: value for name in ("data", "noise", "seeds", "methods", "fractions") if (value := getattr(asked, name))
    }
    effort = Effort(**{**vars(QUICK if asked.quick else FULL), **given})
    torch.set_num_threads(1)
    logging.getLogger("diffin").setLevel(logging.ERROR)
    if not asked.table:
        for seed in range(effort.seeds):
            for name in effort.data:
                for noise in effort.noise:
                    Cells(effort, name, noise, seed).carry_out()
    found = _read(effort.folder)
    print(tables(found))
    for (name, noise), cells in found.items():
        picture = effort.folder / f"{name}-{noise}.svg"
        picture.write_text(draw(f"{name}, {noise}", cells), encoding="utf-8")
        print(picture)


def _read(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Everything that is finished, by data set and noise: the cells of each seed by (method, share), and the whole."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for place in sorted(folder.glob("*-*-[0-9]*")):
        everything = place / "everything.json"
        if not everything.is_file():
            continue
        kind, _, seed = place.name.rpartition("-")
        noise = next(noise for noise in (*NOISE, kind.rpartition("-")[2]) if kind.endswith(noise))
        cells: dict[Any, Any] = {"everything": read_json(everything)}
        for path in place.glob("*.json"):
            if path != everything:
                method, _, fraction = path.stem.rpartition("-")
                cells[method.replace("-unbalanced", "*"), float(fraction)] = json.loads(path.read_text())
        if len(cells) > 1:
            found.setdefault((kind.removesuffix(f"-{noise}"), noise), {})[seed] = cells
    return found


if __name__ == "__main__":
    main()
