"""The state of an iterated selection between two rounds, on disk or not: all that going on with it takes."""

from __future__ import annotations

import json
from collections.abc import Mapping
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
_DIGESTS = ("train", "query", "trajectory")
_ARRAYS = ("subset", "influence", "probability", "unseen", "losses", "tried", "pooled")


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
        losses: of every round, what its subset is judged by: the mean loss of the query or, without one, that of the pool as
            far as labels are believed by now.
        tried: Int64[ndarray, "R n"], the subset that each round trained on.
        pooled: Float64[ndarray, "R N"], the losses of the pool after each round; no rows where a query judges.
        cost: so far.
    """

    rounds: int
    subset: Indices
    influence: Floats
    probability: Floats
    unseen: Indices
    losses: tuple[float, ...]
    tried: Indices
    pooled: Floats
    cost: Cost = field(default_factory=Cost)

    @property
    def best(self) -> Indices:
        """Int64[ndarray, "n"], the subset of the round with the lowest loss."""
        found: Indices = self.tried[int(np.argmin(self.losses))]
        return found


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
        arrays = {name: getattr(standing, name) for name in _ARRAYS}
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
                tried=arrays["tried"],
                pooled=arrays["pooled"],
                cost=Cost(int(cost[0]), float(cost[1]), float(cost[2])),
            )
            question = str(arrays["question"])
        except (OSError, KeyError, ValueError, TypeError, IndexError, OverflowError) as error:
            raise ScoringError(f"{path} is damaged ({error}); select again with resume=False") from error
        if question != self._question:
            raise ScoringError(
                f"{path} is of another selection: {_told_apart(question, self._question)}. Pass another output, or "
                "resume=False to replace it"
            )
        return standing


def differences(there: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """What sets two questions apart, in words."""
    old, new = _flat(there), _flat(asked)
    if old.get("method") != new.get("method"):
        return f"method is {old.get('method')!r} there and {new.get('method')!r} here"
    names = [name for name in {**new, **old} if old.get(name) != new.get(name)]
    return "; ".join(
        f"{name} is another" if name in _DIGESTS else f"{name} is {old.get(name)!r} there and {new.get(name)!r} here"
        for name in names
    )


def _flat(question: Mapping[str, Any]) -> dict[str, Any]:
    """Without mappings in it: those of the settings by their own names, others with the name of the whole before theirs."""
    found: dict[str, Any] = {}
    for name, value in question.items():
        if isinstance(value, Mapping):
            whole = "" if name == "settings" else name
            found.update(
                {whole if key == "name" else f"{whole} {key}".strip(): one for key, one in _flat(value).items()}
            )
        else:
            found[name] = value
    return found


def _told_apart(there: str, asked: str) -> str:
    try:
        old = parse_json(there)
    except ValueError:
        old = None
    return differences(old, json.loads(asked)) if isinstance(old, dict) else "what it asks cannot be read"
