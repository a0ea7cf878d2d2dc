"""One case from one initialisation: its runs, the truths about it, and what everyone says; kept, and gone on with."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from ask import ask, question
from contenders import OURS, TINY, Contender, Settings, libraries, peers_for, said, slug
from measuring import SOURCES, plain_seconds, timed
from question import FEW
from torch import nn
from torch.utils.data import Subset

import diffin
from cases import Case, case, record
from diffin.estimators import Estimator
from diffin.evaluation import Truth, agreement, expected_influence, leave_one_out
from diffin.files import read_json, write_json
from diffin.sources import open_source
from diffin.tasks import Classification
from peers_environment import PeersError

Floats = npt.NDArray[np.float64]

CACHE = Path(__file__).resolve().parents[1] / ".cache" / "accuracy"
RESULT = "result.json"
TRUTHS = ("expected", "own removal", "own .95", "single queries")

_SINGLE = "single queries"
"""The truth about the losses of a few query samples, each on its own: this run without a sample. Of small networks only."""

_ORDERS_SEED = 1000
"""Of the orders of the expected truth; those that are recorded come from 0, 1 and 2, and from another generator."""

_PATIENCE = 3600
"""Seconds that one of the other libraries may take."""

_REMOVED = {"logistic": 200, "mlp": 200, "cnn": 64, "transformer": 40}


@dataclass(frozen=True)
class Effort:
    """How much is retrained.

    Attributes:
        removed: samples left out, by family; a number for all families.
        orders: of the expected truth.
        folder: where it is kept.
    """

    removed: int | None = None
    orders: int = 8
    folder: Path = CACHE


QUICK = Effort(removed=8, orders=2, folder=CACHE / "quick")


class Study:
    """A case from an initialisation.

    The seed is that of samples, wrong labels and first parameters; ``say`` is told what is being done.
    """

    def __init__(self, name: str, seed: int, effort: Effort, say: Callable[[str], None]) -> None:
        self.case: Case = case(name, seed=seed)
        self.seed, self._effort = seed, effort
        self.folder = effort.folder / f"{name}-{seed}"
        self._say = lambda what: say(f"{name} {seed}: {what}")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._result: dict[str, Any] = {"case": name, "seed": seed, "truths": {}, "answers": []}
        with suppress(FileNotFoundError):
            self._result = read_json(self.folder / RESULT)

    def carry_out(self, *, peers: bool, again: bool = False) -> None:
        """Do what has not been done; ``again``, also what another version of diffin has answered."""
        if again:
            self._forget()
        if self._result.get("clock") != "processor":
            self._result |= {"clock": "processor", "plain_seconds": plain_seconds(self.case)}
            self._keep()
        truths = {name: truth for name in TRUTHS if (truth := self._truth(name)) is not None}
        for answer in self._result["answers"]:
            self._agree(answer, truths)
        for contender in OURS:
            if self._missing(contender.name, contender.settings):
                self._answer(contender, truths)
                self._keep()
            if contender.singles and _SINGLE in truths:
                self._answer_singly(contender, truths)
                self._keep()
        if peers:
            for library, names in libraries(peers_for(self.case)).items():
                wanted = [name for name in names if self._missing(name, singly=_SINGLE in truths)]
                if wanted:
                    self._ask(library, wanted, truths)
                    self._keep()

    @cached_property
    def _runs(self) -> list[diffin.Trajectory]:
        """Three, that differ in the order of the data. The first is what the truths of the own run are about."""
        found = []
        for order in range(3):
            folder = self.folder / "runs" / str(order)
            if not folder.exists():
                self._say(f"training in order {order}")
                part = folder.with_suffix(".part")
                shutil.rmtree(part, ignore_errors=True)
                record(self.case, part, order_seed=order)
                part.rename(folder)
            found.append(diffin.Trajectory.open(folder))
        return found

    @cached_property
    def _model(self) -> nn.Module:
        """As the first training left it."""
        model = self.case.build_model().eval()
        final = self._runs[0].final
        assert final is not None  # a complete recording has one
        model.load_state_dict(final.state)
        return model

    def _truth(self, name: str) -> Truth | None:
        """Computed, or read; ``None`` where there can be none."""
        known = self._result["truths"]
        if name not in known:
            self._say(f"truth: {name}")
        try:
            truth = self._compute(name, self.folder / "truths" / name.replace(" ", "-"))
        except diffin.DiffinError as error:
            self._say(f"no truth: {error}")
            known[name] = {"failure": str(error)}
            return None
        if "samples" not in known.get(name, {}):
            # Of the truth alone; what it is compared with does not matter.
            about = agreement(np.arange(len(self.case.train), dtype=np.float64), truth, bootstrap=0)
            known[name] = {
                "sentence": truth.sentence(),
                "samples": about.samples,
                "ceiling": about.ceiling,
                "bound": about.bound,
                "seconds": truth.metadata["seconds"],
                "sources": SOURCES,
            }
            self._keep()
        return truth

    def _compute(self, name: str, folder: Path) -> Truth:
        about = (Classification(self._model), self._runs[0], self.case.train, self.case.query)
        if name == "expected":
            orders = self._effort.orders
            return expected_influence(*about, orders=orders, seed=_ORDERS_SEED, output=folder, progress=False)
        samples = self._effort.removed or _REMOVED[self.case.architecture.split("-")[0]]
        if name == _SINGLE and not self._tiny:
            raise diffin.DiffinError("single queries are asked about on small networks only")
        return leave_one_out(
            *about,
            samples=samples,
            weight=0.95 if name == "own .95" else 0.0,
            query_samples=range(FEW) if name == _SINGLE else None,
            output=folder,
            progress=False,
        )

    def _answer(self, contender: Contender, truths: dict[str, Truth]) -> None:
        self._say(f"{contender.name} {said(contender.settings)}")
        answer: dict[str, Any] = {"name": contender.name, "by": "diffin", "settings": contender.settings}
        try:
            found = [self._scores(contender.estimator, run) for run in range(contender.runs)]
        except diffin.DiffinError as error:
            self._add({**answer, "failure": str(error)[:300]}, None, truths)
            return
        influence = np.mean([influence for influence, _ in found], axis=0)
        self._add({**answer, "seconds": sum(seconds for _, seconds in found)}, influence, truths)

    def _answer_singly(self, contender: Contender, truths: dict[str, Truth]) -> None:
        """What it says of single query samples, beside what it said of their mean."""
        (answer,) = (
            a for a in self._result["answers"] if a["name"] == contender.name and a["settings"] == contender.settings
        )
        path = self._influence(answer, singles=True)
        if "failure" in answer or path.is_file():
            return
        self._say(f"{contender.name}: single queries")
        found = [self._scores(contender.estimator, 0, single=position)[0] for position in range(FEW)]
        np.save(path, np.stack(found))
        self._agree(answer, truths)

    def _scores(self, estimator: Estimator, run: int, *, single: int | None = None) -> tuple[Floats, float]:
        """Influence by `diffin.score`, and the seconds; computed once, whatever the contenders that need it."""
        trajectory, task = self._runs[run], Classification(self._model)
        if isinstance(estimator, diffin.Unrolled):
            estimator = estimator.resolved(task, trajectory, open_source(self.case.train))
        of_query = "" if single is None else f"-query-{single}"
        folder = self.folder / "scores" / f"{slug(repr(estimator))}-{run}{of_query}"
        if not (folder / "seconds.json").is_file():
            asked = self.case.query if single is None else Subset(self.case.query, [single])
            query = None if isinstance(estimator, diffin.MoSo) else asked
            score = lambda: diffin.score(  # noqa: E731 - timed more than once
                task, trajectory, self.case.train, query=query, estimator=estimator, progress=False
            )
            scores, seconds = timed(score)
            folder.mkdir(parents=True, exist_ok=True)
            np.save(folder / "influence.npy", scores.influence)
            write_json(folder / "seconds.json", {"seconds": seconds})
        return np.load(folder / "influence.npy"), read_json(folder / "seconds.json")["seconds"]

    def _ask(self, library: str, names: Sequence[str], truths: dict[str, Truth]) -> None:
        self._say(f"asking {library}: {', '.join(names)}")
        # They tell the seconds of a clock, so the yardstick is one under the same load.
        before = plain_seconds(self.case, time.perf_counter)
        try:
            answers = ask(question(self.case, self._runs[0], self._model, peers=names), seconds=_PATIENCE)
        except PeersError as error:
            answers = {name: [{"settings": {}, "failure": str(error)[:300]}] for name in names}
        plain = (before + plain_seconds(self.case, time.perf_counter)) / 2
        for name in names:
            for given in answers[name]:
                answer = {"name": name, "by": library, "settings": given["settings"]}
                if "failure" in given:
                    self._add({**answer, "failure": given["failure"]}, None, truths)
                    continue
                answer |= {"seconds": given["seconds"] + given["preparation_seconds"], "plain_seconds": plain}
                singles = given["per_query"]
                self._add(answer, given["influence"].numpy(), truths, None if singles is None else singles.numpy())

    def _add(
        self,
        answer: dict[str, Any],
        influence: Floats | None,
        truths: dict[str, Truth],
        singles: Floats | None = None,
    ) -> None:
        """What somebody said, and how well it agrees; or a failure."""
        answer |= {"agreement": {}, "sources": SOURCES, "asked_singly": True}
        if singles is not None:
            path = self._influence(answer, singles=True)
            path.parent.mkdir(exist_ok=True)
            np.save(path, singles)
        if influence is not None:
            path = self._influence(answer)
            path.parent.mkdir(exist_ok=True)
            np.save(path, influence)
        self._agree(answer, truths)
        self._result["answers"].append(answer)

    def _agree(self, answer: dict[str, Any], truths: dict[str, Truth]) -> None:
        """Compare an answer with those truths that it has not been compared with."""
        if "failure" in answer:
            return
        for name, truth in truths.items():
            path = self._influence(answer, singles=name == _SINGLE)
            if name not in answer["agreement"] and path.is_file():
                answer["agreement"][name] = asdict(agreement(np.load(path), truth))

    def _influence(self, answer: dict[str, Any], *, singles: bool = False) -> Path:
        """Where it is kept, Float64[ndarray, "N"], or Float64[ndarray, "Q N"] of single query samples."""
        own = slug(answer["name"] + said(answer["settings"]))
        return self.folder / "influence" / f"{own}{'-singles' if singles else ''}.npy"

    def _forget(self) -> None:
        """What diffin said as another version, and the truth that its Replay found. Other libraries, and retraining, stay."""
        answers, truths = self._result["answers"], self._result["truths"]
        ours = [answer for answer in answers if answer["by"] == "diffin"]
        if any(answer["sources"] != SOURCES for answer in ours):
            for answer in ours:
                self._influence(answer, singles=True).unlink(missing_ok=True)
            self._result["answers"] = [answer for answer in answers if answer["by"] != "diffin"]
            shutil.rmtree(self.folder / "scores", ignore_errors=True)
        if truths.get("expected", {}).get("sources") != SOURCES:
            truths.pop("expected", None)
            for answer in self._result["answers"]:
                answer["agreement"].pop("expected", None)
            shutil.rmtree(self.folder / "truths" / "expected", ignore_errors=True)
        self._keep()

    def _missing(self, name: str, settings: Settings | None = None, *, singly: bool = False) -> bool:
        """A failure is tried again; ``singly``, what was asked before single queries were, too."""
        same = [
            answer for answer in self._result["answers"]
            if answer["name"] == name and (settings is None or answer["settings"] == settings)
        ]  # fmt: skip
        old = singly and not any(answer.get("asked_singly") for answer in same)
        if same and (old or all("failure" in answer for answer in same)):
            self._result["answers"] = [answer for answer in self._result["answers"] if answer not in same]
            return True
        return not same

    @property
    def _tiny(self) -> bool:
        return self.case.architecture.split("-")[0] in TINY

    def _keep(self) -> None:
        write_json(self.folder / RESULT, self._result)
