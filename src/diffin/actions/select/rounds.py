"""The state of an iterated selection between two rounds, on disk or not: all that going on with it takes."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from diffin import reading
from diffin.actions.select.selection import Cost
from diffin.errors import ScoringError
from diffin.files import parse_json, write_atomically
from diffin.scoring.columns import Floats
from diffin.sources import Indices

_FORM = "round-{:03d}.npz"


@dataclass(frozen=True, eq=False)
class Standing:
    """Where an iterated selection stands after some rounds.

    Attributes:
        rounds: that are over.
        subset: Int64[ndarray, "n"], the subset to train on next, ascending.
        influence: Float64[ndarray, "N"], the average over rounds, of each over its median size; empty before the first.
        probability: Float64[ndarray, "N"], the sum over rounds of the probability that a model gave to the label of a sample
            it was not trained on.
        unseen: Int64[ndarray, "N"], in how many rounds a sample was not trained on.
        losses: held-out loss of the subset that each round trained on.
        best: Int64[ndarray, "n"], the subset of the round with the lowest of them.
        cost: so far.
    """

    rounds: int
    subset: Indices
    influence: Floats
    probability: Floats
    unseen: Indices
    losses: tuple[float, ...]
    best: Indices
    cost: Cost = field(default_factory=Cost)


class Rounds:
    """Keeps the standing after every round in a folder, the newest only.

    Args:
        folder: where; ``None`` to keep nothing.
        question: JSON-able; what the standings are of.
    """

    def __init__(self, folder: Path | None, question: dict[str, Any]) -> None:
        self.folder = folder
        self._question = json.dumps(question, sort_keys=True)

    def last(self) -> Standing | None:
        """The newest standing, if there is one.

        Raises:
            ScoringError: it is damaged, or of another question.
        """
        if self.folder is None or not self.folder.is_dir():
            return None
        for path in sorted(self.folder.glob("round-*.npz"), reverse=True):
            return self._read(path)
        return None

    def keep(self, standing: Standing) -> None:
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / _FORM.format(standing.rounds)
        arrays = {
            name: getattr(standing, name) for name in ("subset", "influence", "probability", "unseen", "losses", "best")
        }
        cost = [standing.cost.trainings, standing.cost.training_seconds, standing.cost.scoring_seconds]
        with write_atomically(path) as part, part.open("wb") as file:
            np.savez(file, question=np.array(self._question), cost=np.array(cost), **arrays)
        for older in self.folder.glob("round-*.npz"):
            if older != path:
                older.unlink()

    def _read(self, path: Path) -> Standing:
        try:
            arrays = reading.arrays(path)
            cost = arrays["cost"]
            standing = Standing(
                rounds=int(path.stem.partition("-")[2]),
                subset=arrays["subset"],
                influence=arrays["influence"],
                probability=arrays["probability"],
                unseen=arrays["unseen"],
                losses=tuple(arrays["losses"].tolist()),
                best=arrays["best"],
                cost=Cost(int(cost[0]), float(cost[1]), float(cost[2])),
            )
            question = str(arrays["question"])
        except (OSError, KeyError, ValueError, TypeError, IndexError, OverflowError) as error:
            raise ScoringError(f"{path} is damaged ({error}); select again with resume=False") from error
        if question != self._question:
            raise ScoringError(
                f"{path} is of another selection: {_difference(question, self._question)}. Pass another output, or "
                "resume=False to replace it"
            )
        return standing


def _difference(there: str, asked: str) -> str:
    try:
        old, new = parse_json(there), json.loads(asked)
    except ValueError:
        old = None
    if not isinstance(old, dict):
        return "what it asks cannot be read"
    names = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    return "; ".join(f"{name} is {old.get(name)!r} there and {new.get(name)!r} here" for name in names)
