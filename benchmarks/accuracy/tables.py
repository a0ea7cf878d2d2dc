"""The results of a comparison as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contenders import FIXED, OURS, PEERS, Settings
from study import RESULT, TRUTHS

from diffin.files import read_json
from table import Table, machine

Result = dict[str, Any]

FAMILIES = {"logistic": "Logistic regression", "mlp": "MLP", "cnn": "CNN", "transformer": "Transformer"}
COMPACT = {
    "logistic": "logistic+flips",
    "MLP SGD": "mlp-sgd+flips",
    "MLP AdamW": "mlp-adamw+flips",
    "CNN SGD": "cnn-sgd-plain-gelu+flips",
    "CNN AdamW": "cnn-adamw-group-gelu+flips",
    "CNN BatchNorm": "cnn-sgd-batch-gelu+flips",
    "transformer": "transformer+flips",
}
CHOSEN = "†"
_VARIANTS = (
    "MoSo",
    "Unrolled, segments",
    "Unrolled, steps",
    "Unrolled, steps, 20 states",
    f"dattri TracIn {CHOSEN}",
    f"kronfluence EK-FAC {CHOSEN}",
)
"""Rows that the README leaves out."""

LEGEND = f"""\
Spearman correlation over samples between what an estimator says and the truth; medians over the seeds, 95 % bootstrap
intervals over the samples of one seed (medians of their ends). *Expected* is the exact derivative for the weight of every
sample, mean over eight orders of the data that no estimator has seen; *own removal* and *own .95* are this very run, trained
again without a sample, or with a twentieth of its weight taken away. *Single queries* is the first of these about the losses
of eight query samples, each on its own: the mean of eight correlations. {CHOSEN}: the best of the settings that were tried
against each truth, which nobody can choose who does not know the truth. Bold: the best of the others, in each column; a
line below a table names what {CHOSEN} brings above that. A number of seeds in brackets is how many an entry is from, where
that is fewer than its column has: it may stand beside medians of harder ones.

The *ceiling* is what a second truth of the same price would reach, the *bound* the highest that an estimate can be expected
to. An entry `-` was not asked, or could not have been; `failed` gave no scores. MoSo's query is the training risk, not the
query. Cost: seconds over those of one plain training, with one thread on the same machine (the other libraries have a
process of their own, and {CHOSEN} counts one setting, not the search); in the overview, the median over its columns. Means of
3 runs count scoring, not the two additional trainings. Everything is in float32."""


@dataclass(frozen=True)
class Row:
    """A row of the tables: answers under one name, in a fixed setting or in the best."""

    label: str
    name: str
    settings: Settings | None = None
    chosen: bool = False

    def answers(self, result: Result) -> list[dict[str, Any]]:
        return [
            answer for answer in result["answers"]
            if answer["name"] == self.name and (self.settings is None or self.settings.items() <= answer["settings"].items())
        ]  # fmt: skip

    def best(self, result: Result, truth: str) -> dict[str, Any] | None:
        """Agreement with a truth; of several settings, the one that knows best."""
        known = [answer["agreement"][truth] for answer in self.answers(result) if truth in answer["agreement"]]
        told = [one for one in known if one["spearman"] is not None]
        return max(told, key=lambda one: one["spearman"], default=None)

    def cost(self, result: Result) -> float | None:
        told = [answer for answer in self.answers(result) if "seconds" in answer]
        return _median(one["seconds"] / one.get("plain_seconds", result["plain_seconds"]) for one in told)


def document(folder: Path, names: Iterable[str]) -> str:
    """All tables of the cases, as far as there are results."""
    results = {name: list(_results(folder, name)) for name in names}
    results = {name: found for name, found in results.items() if found}
    if not results:
        return "Nothing has been measured yet.\n"
    rows = _rows([result for found in results.values() for result in found])
    said = ["# Accuracy: the tables", "Printed by `make accuracy`; not written by hand.", LEGEND, f"{machine()}."]
    said += [_seeds(results)]
    compact = {column: results[name] for column, name in COMPACT.items() if name in results}
    said.append("## Overview")
    for truth in TRUTHS:
        known = {column: found for column, found in compact.items() if _is_known(truth, found)}
        if known:
            said.append(_overview(f"Against the truth *{truth}*", rows, known, truth))
    for family, title in FAMILIES.items():
        own = {name: found for name, found in results.items() if name.startswith(family)}
        if own:
            said += [
                f"## {title}",
                _family("*expected* / *own removal*, and cost", rows, own, ("expected", "own removal")),
            ]
            for truth in ("own .95", "single queries"):
                known = {name: found for name, found in own.items() if _is_known(truth, found)}
                if known:
                    said.append(_family(f"*{truth}*", rows, known, (truth,), cost=False))
    return "\n\n".join(said) + "\n"


def in_short(folder: Path) -> str:
    """The table of the README: both truths at once, without the variants."""
    columns = {column: list(_results(folder, name)) for column, name in COMPACT.items()}
    columns = {column: found for column, found in columns.items() if found}
    rows = [row for row in _rows([r for found in columns.values() for r in found]) if row.label not in _VARIANTS]
    table = Table("", "", *columns, "cost")
    expected, own = ({c: _Column(rows, found, truth) for c, found in columns.items()} for truth in TRUTHS[:2])
    for row in rows:
        cells = []
        for column in columns:
            first, second = expected[column].cell(row, interval=True), own[column].cell(row)
            cells.append(first if first == second else f"{first} / {second}")
        if any(cell != "-" for cell in cells):
            table.add(row.label, *cells, _cost(row, columns))
    ceilings = [_figure(_median(r["truths"].get(TRUTHS[0], {}).get("ceiling") for r in f)) for f in columns.values()]
    table.add("*ceiling*", *ceilings, "")
    seeds = max(len(found) for found in columns.values())
    below = (
        "Spearman with the expected influence [95 % interval] / with the effect of removal on the very run. Medians "
        f"over up to {seeds} initialisations; (n seeds): over fewer.\n{CHOSEN}: the best of four to seven settings "
        "against this very truth, which nobody can choose who does not know it. Cost: processor time over one plain "
        "training, median of the columns.\n*Ceiling*: the agreement of two such expected truths. "
        f"{machine()}."
    )
    return f"{table.markdown()}\n{below}"


def _is_known(truth: str, results: Sequence[Result]) -> bool:
    return any("samples" in result["truths"].get(truth, {}) for result in results)


def _results(folder: Path, name: str) -> Iterator[Result]:
    """Of every seed that is done, in the sense that somebody has answered."""
    for path in sorted(folder.glob(f"{name}-[0-9]*/{RESULT}")):
        result = read_json(path)
        if result["answers"]:
            yield result


def _rows(results: Sequence[Result]) -> list[Row]:
    """Ours, then the others."""
    rows = []
    for name in (*dict.fromkeys(contender.name for contender in OURS), *PEERS):
        settings = {str(answer["settings"]) for result in results for answer in Row("", name).answers(result)}
        if not settings:
            continue
        grid = max(len(Row("", name).answers(result)) for result in results) > 1
        if name in FIXED:
            fixed = FIXED[name]
            told = ", ".join(f"{key} {_told(value)}" for key, value in fixed.items())
            rows.append(Row(f"{name} ({told})", name, fixed))
        if grid:
            rows.append(Row(f"{name} {CHOSEN}", name, chosen=True))
        elif name not in FIXED:
            rows.append(Row(name, name))
    return rows


def _overview(title: str, rows: list[Row], columns: dict[str, list[Result]], truth: str) -> str:
    """One truth, with intervals."""
    table = Table(title, "", *columns, "cost")
    marks = {column: _Column(rows, found, truth) for column, found in columns.items()}
    for row in rows:
        cells = [marks[column].cell(row, interval=True) for column in columns]
        if any(cell != "-" for cell in cells):
            table.add(row.label, *cells, _cost(row, columns))
    for what in ("ceiling", "bound"):
        found = [_figure(_median(r["truths"].get(truth, {}).get(what) for r in found)) for found in columns.values()]
        if any(cell != "-" for cell in found):
            table.add(f"*{what}*", *found, "")
    return table.markdown() + _above(marks)


def _cost(row: Row, columns: dict[str, list[Result]]) -> str:
    """The median over columns of medians over seeds."""
    return _number(_median(_median(row.cost(result) for result in found) for found in columns.values()))


def _family(
    title: str, rows: list[Row], results: dict[str, list[Result]], truths: tuple[str, ...], *, cost: bool = True
) -> str:
    header = [cell for name in results for cell in ((name, "cost") if cost else (name,))]
    table = Table(title, "", *header)
    marks = {(name, truth): _Column(rows, found, truth) for name, found in results.items() for truth in truths}
    for row in rows:
        cells = []
        for name, found in results.items():
            parts = [marks[name, truth].cell(row, interval=len(truths) == 1) for truth in truths]
            cells.append(parts[0] if len(set(parts)) == 1 and parts[0] in ("-", "failed") else " / ".join(parts))
            if cost:
                cells.append(_number(_median(row.cost(result) for result in found)))
        if any(cell != "-" for cell in cells):
            table.add(row.label, *cells)
    for what in ("ceiling", "bound"):
        cells = []
        for found in results.values():
            parts = [_figure(_median(r["truths"].get(truth, {}).get(what) for r in found)) for truth in truths]
            cells += [" / ".join(parts), ""] if cost else parts
        if any(part.strip("- /") for part in cells):
            table.add(f"*{what}*", *cells)
    return table.markdown() + _above({f"{name}, {truth}": mark for (name, truth), mark in marks.items()})


class _Column:
    """Figures of one case against one truth, and which of them is the best."""

    def __init__(self, rows: list[Row], results: list[Result], truth: str) -> None:
        self._results, self._truth = results, truth
        self.figures = {row.label: self._spearman(row) for row in rows}
        self._rows = rows
        self._told = {row.label: sum(row.best(result, truth) is not None for result in results) for row in rows}
        self._most = max(self._told.values(), default=0)
        fair = [_rounded(v) for row in rows if (v := self._comparable(row)) is not None and not row.chosen]
        self.best = max(fair, default=None)

    def cell(self, row: Row, *, interval: bool = False) -> str:
        value = self.figures[row.label]
        if value is None:
            answers = [answer for result in self._results for answer in row.answers(result)]
            return "failed" if answers and all("failure" in answer for answer in answers) else "-"
        text = _figure(value)
        if not row.chosen and self._comparable(row) is not None and _rounded(value) == self.best:
            text = f"**{text}**"
        told = self._told[row.label]
        if told < self._most:
            text += f" ({told} seed{'s' if told > 1 else ''})"
        if interval:
            found = [best["spearman_interval"] for r in self._results if (best := row.best(r, self._truth)) is not None]
            ends = [one for one in found if one is not None]
            if ends:
                text += f" [{_figure(_median(low for low, _ in ends))}, {_figure(_median(high for _, high in ends))}]"
        return text

    def above(self) -> list[str]:
        """What was chosen with knowledge of the truth, and is better than the best that was not."""
        figures = [(row.label, self._comparable(row)) for row in self._rows if row.chosen]
        if self.best is None:
            return []
        return [
            f"{name} {_figure(value)}" for name, value in figures if value is not None and _rounded(value) > self.best
        ]

    def _comparable(self, row: Row) -> float | None:
        """Its figure, if it is from as many seeds as any."""
        return self.figures[row.label] if self._told[row.label] == self._most else None

    def _spearman(self, row: Row) -> float | None:
        return _median(None if (best := row.best(r, self._truth)) is None else best["spearman"] for r in self._results)


def _above(marks: dict[str, _Column]) -> str:
    found = [f"{name}: {', '.join(mark.above())}" for name, mark in marks.items() if mark.above()]
    return f"\nAbove the bold figure, chosen with knowledge of the truth: {'; '.join(found)}.\n" if found else ""


def _seeds(results: dict[str, list[Result]]) -> str:
    """How much stands behind the medians, and whether one version of the library does."""
    said = "; ".join(f"{name} {', '.join(str(result['seed']) for result in found)}" for name, found in results.items())
    versions = {
        answer["sources"]
        for found in results.values() for result in found for answer in result["answers"] if answer["by"] == "diffin"
    }  # fmt: skip
    mixed = f" They come from {len(versions)} versions of the library's source." if len(versions) > 1 else ""
    return f"Seeds so far: {said}.{mixed}"


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _rounded(value: float) -> float:
    return round(value, 2) + 0.0


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{_rounded(value):.2f}".replace("0.", ".", 1)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}" if value < 10 else f"{value:.0f}"


def _told(value: Any) -> str:
    words = {"None": "default", "False": "no", "True": "yes"}
    return words.get(str(value), str(value))
