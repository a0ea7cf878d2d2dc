"""How well a model forgets: `diffin delete` and what is usually done, against the same training without the samples.

    python benchmarks/actions/deletion.py            # hours: two trainings, three seeds, seven sets, eight shadow models
    python benchmarks/actions/deletion.py --quick    # minutes: smaller trainings, one seed, no shadow models

`gap` is how much of the loss between the original and the retrained model is closed on the forgotten samples; `forgotten`,
`kept` and `test` are accuracies minus those of the retrained model, in points; `attack` is the AUC of the attack by loss (and
by population) minus the retrained model's; `time` is over that of retraining. The methods that go by training steps are given
what nobody has: of six recipes, the one that comes closest to the retrained model, and the time of that one only. What is
finished is kept in benchmarks/.cache/actions/deletion, a file for each cell; a run that was stopped goes on, and one that
asks for more methods adds them.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from deletion_cases import NAMES, SETS, Case, record, samples_of
from torch import Tensor

import diffin
from diffin.actions.delete import Linearised, baselines, certify, delete, retrain
from diffin.actions.delete.certificate import Certified
from diffin.actions.delete.training import Recipe
from diffin.errors import DiffinError
from diffin.files import read_json, write_json
from diffin.sources import open_source
from table import Table, machine

CACHE = Path(__file__).resolve().parents[1] / ".cache" / "actions" / "deletion"

State = dict[str, Tensor]
_GRID = [(steps, share) for steps in (15, 60, 240) for share in (0.03, 0.2)]
_ESTIMATORS: dict[str, Callable[[], Any]] = {
    "linearised": Linearised,
    "unrolled, segments": lambda: diffin.Unrolled(propagation="segments", rank=20, curvature_samples=512),
    "influence function (CG)": lambda: diffin.InverseHessian(damping=0.01, samples=512),
    "diff-in (Eq. 9)": diffin.DiffIn,
}
_TRAINED = ("fine-tuning", "gradient ascent", "random relabel", "NegGrad+")
METHODS = ("nothing", "linearised", "linearised, 50 recovery steps", *list(_ESTIMATORS)[1:], *_TRAINED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--data", nargs="+", default=NAMES, choices=NAMES)
    parser.add_argument("--sets", nargs="+", default=SETS, choices=SETS)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--shadows", type=int, help="models for the attack on the population; 8, and 0 with --quick")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    logging.getLogger("diffin").setLevel(logging.ERROR)
    seeds = arguments.seeds or (1 if arguments.quick else 3)
    shadows = arguments.shadows if arguments.shadows is not None else 0 if arguments.quick else 8
    folder = CACHE / ("quick" if arguments.quick else "full")
    folder.mkdir(parents=True, exist_ok=True)
    for name in arguments.data:
        for seed in range(seeds):
            for which in arguments.sets:
                cell = folder / f"{name}_{seed}_{which}.json"
                there = read_json(cell)["methods"] if cell.is_file() else {}
                missing = [method for method in arguments.methods if method not in there]
                if missing:
                    case = record(name, seed, CACHE / "runs", quick=arguments.quick)
                    _warm_up(case)
                    write_json(cell, {"methods": there | measure(case, which, missing, shadows)})
    print(machine() + "\n")
    found = {
        name: {
            which: [read_json(folder / f"{name}_{seed}_{which}.json")["methods"] for seed in range(seeds)]
            for which in arguments.sets
        }
        for name in arguments.data
    }
    for name, sets in found.items():
        for which, cells in sets.items():
            print(tabled(f"{name}, {which}, {seeds} seed{'s' if seeds > 1 else ''}", cells))
    for name, sets in found.items():
        print(overview(f"{name}: gap closed; attack", sets))


def _warm_up(case: Case) -> None:
    """What PyTorch imports when it is first needed takes seconds, and belongs to nobody's time."""
    quick = Linearised(intervals=1, iterations=1, curvature_samples=16, polish=1)
    delete(case.task, case.trajectory, case.train, [0], estimator=quick, recovery_steps=1, force=True, progress=False)


def measure(case: Case, which: str, methods: Sequence[str], shadows: int) -> dict[str, Any]:
    """Some methods on one set, as differences to the retrained model."""
    chosen = samples_of(case, which)
    retrained, took = retrain(case.task, case.trajectory, open_source(case.train), chosen)
    assert case.trajectory.final is not None
    states: dict[str, State] = {}
    times: dict[str, float] = {}
    refused: dict[str, bool] = {}
    for name in methods:
        if name == "nothing":
            states[name], times[name] = case.trajectory.final.state, 0.0
            continue
        if name in _TRAINED:
            states[name], times[name] = _best(case, chosen, name, retrained)
            continue
        kind, _, recovery = name.partition(", 50")
        deletion = delete(
            case.task,
            case.trajectory,
            case.train,
            chosen,
            estimator=_ESTIMATORS[kind](),
            recovery_steps=50 if recovery else 0,
            force=True,
            progress=False,
        )
        states[name], times[name] = dict(deletion.state), deletion.certificate.seconds["deletion"]
        refused[name] = not deletion.certificate.regime["holds"]
    rows = _rows(case, chosen, states, retrained, shadows)
    return {
        name: {**row, "time": times[name] / took, **({"refused": refused[name]} if name in refused else {})}
        for name, row in rows.items()
    }


def _best(case: Case, chosen: Any, name: str, retrained: State) -> tuple[State, float]:
    """Of all recipes, the one that comes closest to the retrained model, and its seconds."""
    tried = {recipe: _timed(case, chosen, name, *recipe) for recipe in _GRID}
    states = {str(recipe): state for recipe, (state, _) in tried.items() if state is not None}
    rows = _rows(case, chosen, states, retrained, 0)
    best = min(states, key=lambda recipe: _missed(rows[recipe]))
    return states[best], next(seconds for recipe, (_, seconds) in tried.items() if str(recipe) == best)


def _timed(case: Case, chosen: Any, name: str, steps: int, share: float) -> tuple[State | None, float]:
    recipe = Recipe.like(case.trajectory, steps, share=share, seed=case.seed)
    arguments = (case.task, case.trajectory, case.train, chosen, recipe)
    start = time.perf_counter()
    try:
        match name:
            case "fine-tuning":
                state = baselines.fine_tuning(*arguments)
            case "gradient ascent":
                state = baselines.gradient_ascent(*arguments)
            case "random relabel":
                state = baselines.random_relabel(*arguments, classes=10)
            case _:
                state = baselines.neggrad_plus(*arguments)
    except DiffinError:
        return None, 0.0
    return state, time.perf_counter() - start


def _rows(
    case: Case, chosen: Any, states: dict[str, State], retrained: State, shadows: int
) -> dict[str, dict[str, Any]]:
    """The shadow models are the same for all."""
    models = certify(
        case.task, case.trajectory, case.train, chosen, {**states, "retrained": retrained}, test=case.test,
        shadows=shadows, seed=case.seed,
    )  # fmt: skip
    return {name: _row(models[name], models["retrained"]) for name in states}


def _row(ours: Certified, theirs: Certified) -> dict[str, Any]:
    def points(which: str) -> float:
        return 100 * (_accuracy(ours, which) - _accuracy(theirs, which))

    row = {
        "gap": ours.gap_closed,
        "kept": points("kept"),
        "test": points("test"),
        "forgotten": points("forgotten"),
        "attack": (ours.threshold_attack or 0.0) - (theirs.threshold_attack or 0.0),
        "population": None,
        "cosine": ours.cosine,
    }
    if ours.population_attack is not None and theirs.population_attack is not None:
        row["population"] = ours.population_attack - theirs.population_attack
    return row


def _accuracy(model: Certified, which: str) -> float:
    found = model.on[which].accuracy
    assert found is not None
    return found


def _missed(row: dict[str, Any]) -> float:
    """How far from the retrained model, by what a person would see; a hundredth of the gap counts as much as .2 points."""
    gap = min(abs((row["gap"] or 0.0) - 1), 2.0)
    return abs(row["kept"]) + abs(row["test"]) + 100 * abs(row["attack"]) + 20 * gap


def tabled(title: str, cells: list[dict[str, Any]]) -> str:
    """Means over seeds, with the half-range where there are several."""
    columns = {"gap": "gap closed", "forgotten": "forgotten", "kept": "kept", "test": "test", "attack": "attack",
               "population": "by population", "cosine": "cosine", "time": "time"}  # fmt: skip
    forms = {"gap": "{:.0%}", "forgotten": "{:+.1f}", "kept": "{:+.1f}", "test": "{:+.1f}", "attack": "{:+.3f}",
             "population": "{:+.3f}", "cosine": "{:.2f}", "time": "{:.2f}"}  # fmt: skip
    table = Table(title, "method", *columns.values(), "refused")
    for method in METHODS:
        rows = [cell[method] for cell in cells if method in cell]
        if not rows:
            continue
        texts = []
        for column in columns:
            values = [row[column] for row in rows if row[column] is not None]
            if not values:
                texts.append("")
                continue
            text = forms[column].format(float(np.mean(values)))
            spread = forms[column].replace("+", "").format(float(np.ptp(values)) / 2)
            texts.append(f"{text} ± {spread}" if len(values) > 1 else text)
        table.add(method, *texts, str(sum(bool(row.get("refused")) for row in rows) or ""))
    return table.markdown()


def overview(title: str, sets: dict[str, list[dict[str, Any]]]) -> str:
    """Every method on every set: the gap and the attack, and the accuracies where they are worst; of what was not refused."""
    table = Table(title, "method", *sets, "kept, worst", "test, worst", "time")
    for method in METHODS:
        if not all(method in cell for found in sets.values() for cell in found):
            continue
        cells, worst, times = [], {"kept": 0.0, "test": 0.0}, []
        for found in sets.values():
            rows = [cell[method] for cell in found]
            held = [row for row in rows if not row.get("refused")]
            refused = f" ({len(rows) - len(held)} refused)" if len(held) < len(rows) else ""
            times += [row["time"] for row in rows]
            if not held:
                cells.append(refused.strip())
                continue
            gaps, attack = [row["gap"] for row in held], np.mean([row["attack"] for row in held])
            cells.append(f"{np.mean(gaps):.0%} ± {50 * np.ptp(gaps):.0f}; {attack:+.3f}{refused}")
            for column in worst:
                worst[column] = max(worst[column], float(np.mean([row[column] for row in held])), key=abs)
        table.add(method, *cells, *(f"{value:+.1f}" for value in worst.values()), f"{np.mean(times):.2f}")
    return table.markdown()


if __name__ == "__main__":
    main()
