"""Everything that the page can ask, answered in what JSON knows."""

from __future__ import annotations

import itertools
import logging
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from diffin.errors import DatasetError
from diffin.explore.columns import Table
from diffin.explore.courses import Courses
from diffin.explore.files import add_columns
from diffin.explore.gathering import gather
from diffin.explore.marks import Marks
from diffin.explore.neighbours import Neighbours
from diffin.explore.samples import Album
from diffin.explore.sayings import Sayings
from diffin.explore.telling import Teller
from diffin.explore.views import Asked, View, histogram_edges
from diffin.explore.worker import Worker
from diffin.report.method import Method
from diffin.report.numbers import Unit
from diffin.report.predictions import Said, describe
from diffin.report.words import words_for

if TYPE_CHECKING:
    import pyarrow as pa

    from diffin.actions.clean import Suspects
    from diffin.attribution import Attribution
    from diffin.problem import Problem
    from diffin.scoring.scores import Scores

logger = logging.getLogger(__name__)

_KEPT_VIEWS, _KEPT_ROWS = 16, 20_000_000
_MOST_ROWS = 600


class Desk:
    """Scores, and all that was computed beside them, laid out for one page.

    Args: see :func:`diffin.explore.explore`.
    """

    def __init__(
        self,
        scores: Scores,
        problem: Problem | None,
        state: Mapping[str, Tensor] | None,
        suspects: Suspects | None,
        attribution: Attribution | None,
        columns: Path | str | pa.Table | None,
        decisions: Path | None,
        title: str,
    ) -> None:
        self._scores, self._problem, self._title = scores, problem, title
        if attribution is not None and attribution.samples != len(scores):
            raise DatasetError(
                f"the attribution is about {attribution.samples} samples, and the scores about {len(scores)}; pass those of "
                "one training set"
            )
        self.table: Table = gather(scores, suspects)
        keys = scores.keys
        if columns is not None:
            add_columns(self.table, columns, keys)
        self._teller = None if problem is None else Teller(problem, state, self.table)
        has_classes = suspects is not None or (self._teller is not None and self._teller.of_classes)
        self._classes = label = self.table.categories["label"] if has_classes else None
        called = None if problem is None else getattr(problem.task, "class_names", None)
        if suspects is not None and label is not None and called is not None and len(called) == len(label.names):
            label.names[:] = called  # Suspects know classes by number.
        self.marks = Marks(
            len(scores), decisions, given=None if label is None else label.codes,
            classes=0 if label is None else len(label.names),
        )  # fmt: skip
        self._album = None if problem is None else Album(problem.train, problem.show)
        asks = problem is not None and problem.query is not None and attribution is not None and not attribution.grouped
        self._queries = Album(problem.query, problem.show) if problem is not None and asks else None
        self._query_labels: dict[int, Said] = {}
        self._neighbours = None if attribution is None else Neighbours(attribution)
        self.says = Sayings(
            self.table,
            self.marks,
            self._teller,
            self._classes,
            keys,
            scores.failures,
            Courses(scores),
            self._neighbours,
        )
        self._views: OrderedDict[int, View] = OrderedDict()
        self._numbers, self._lock = itertools.count(1), threading.Lock()
        self.worker = Worker()
        if self._teller is not None:
            self.worker.go_through(self._telling(self._teller))

    def about(self) -> dict[str, Any]:
        """What the page must know first."""
        scores, table = self._scores, self.table
        method = Method.of(scores.metadata, [int(step) for step in scores.steps], {})
        words = words_for(method.kind)
        kind = scores.metadata.get("terms", "draws")
        return {
            "title": self._title,
            "samples": len(scores),
            "estimator": method.estimator,
            "factor": self._unit.factor,
            "unit": self._unit.label,
            "words": {"raises": words.raises, "lowers": words.lowers, "sign": words.sign},
            "steps": [int(step) for step in scores.steps],
            "part": {"draws": "checkpoint", "parts": "part", "runs": "training"}[kind],
            "course": kind != "runs",
            "failed": int(np.isnan(scores.influence).sum()),
            "columns": self._columns(),
            "searched": self._problem is not None or bool(table.texts) or bool(table.categories),
            "shows": self._album is not None,
            "queries": None if self._neighbours is None else len(self._neighbours),
            "complete": self._neighbours is not None and self._neighbours.complete,
            "top": 0 if self._neighbours is None else len(self._neighbours.query(0)["proponents"]),
            "decisions": None if self.marks.path is None else str(self.marks.path),
            **self.progress(),
        }

    def progress(self) -> dict[str, Any]:
        """How far labels, predictions and texts have been read, the classes known so far, and the decisions."""
        teller = self._teller
        done, total = (0, 0) if teller is None else (teller.done, teller.total)
        names = [] if self._classes is None else list(self._classes.names)
        self.marks.classes = len(names)
        return {
            "done": done,
            "total": total,
            "trouble": "" if teller is None else teller.trouble,
            "classes": names,
            "categories": [
                {"name": name, "title": category.title, "names": list(category.names)}
                for name, category in self.table.categories.items()
            ],
            "agreement": {"label", "predicted"} <= self.table.categories.keys(),
            **self.decided(),
        }

    def decided(self) -> dict[str, Any]:
        """How many samples have been decided about, and how many changes can be taken back."""
        return {"counts": self.marks.counts, "undoable": self.marks.undoable}

    def view(self, content: Any) -> dict[str, Any]:
        """Filter and sort; the first rows come along.

        Raises:
            DatasetError: the question makes no sense.
        """
        asked = Asked.from_json(content, self.table)
        wanted = content.get("histograms", ["influence", "loss"])
        histograms = tuple(str(name) for name in wanted if name in self.table.numbers)
        view = View.of(asked, self.table, self.marks, histograms)
        number = next(self._numbers)
        with self._lock:
            self._views[number] = view
            while len(self._views) > 2 and (
                len(self._views) > _KEPT_VIEWS or sum(len(kept.rows) for kept in self._views.values()) > _KEPT_ROWS
            ):
                self._views.popitem(last=False)
        return {
            "view": number,
            "count": len(view.rows),
            "facets": view.facets,
            "histograms": view.histograms,
            "rows": self.rows(number, 0, 120),
        }

    def rows(self, number: int, start: int, stop: int) -> list[dict[str, Any]]:
        """The rows at some places of a view, at most 600.

        Raises:
            DatasetError: the view is no longer kept.
        """
        return [self.says.row(row) for row in self._view(number).rows[start : min(stop, start + _MOST_ROWS)].tolist()]

    def place(self, number: int, row: int) -> int | None:
        """Where a sample stands in a view; ``None`` if it is not in it."""
        found = np.flatnonzero(self._view(number).rows == row)
        return int(found[0]) if len(found) else None

    def see(self, rows: Sequence[int]) -> dict[str, Any]:
        """Samples as they look, with what is said of them; reads data, so it is a job for the worker."""
        if self._teller is not None:
            self._teller.tell(rows)
        return self.seen(rows, {} if self._album is None else self._album.see(rows))

    def seen(self, rows: Sequence[int], kept: Mapping[int, Any] | None = None) -> dict[str, Any]:
        """Of ``rows``, those that need not be read."""
        if kept is None:
            kept = {} if self._album is None else self._album.kept(rows)
        return {str(row): {**kept[row].to_json(), "facts": self.says.row(row)} for row in rows if row in kept}

    def see_queries(self, places: Sequence[int]) -> dict[str, Any]:
        """Queries as they look and are labelled; a job for the worker."""
        if self._neighbours is None:
            return {}
        of = {place: self._neighbours.query(place) for place in places if 0 <= place < len(self._neighbours)}
        positions = [found["query"] for found in of.values()]
        looks = {} if self._queries is None else self._queries.see(positions)
        missing = [position for position in positions if position not in self._query_labels]
        if self._queries is not None and self._problem is not None and missing:
            said, _ = describe(replace(self._problem, train=self._problem.query), missing, None)
            self._query_labels |= {position: said.get(position, Said()) for position in missing}
        return {
            str(place): {
                **(looks[found["query"]].to_json() if found["query"] in looks else {"kind": "none"}),
                "facts": {**found, "label": self._query_label(found["query"])},
            }
            for place, found in of.items()
        }

    def mark(self, content: Any) -> dict[str, Any]:
        """Decide about samples, or about all of a view.

        Raises:
            DatasetError: the decision makes no sense.
        """
        rows = self._view(int(content["view"])).rows if content.get("view") else [int(row) for row in content["rows"]]
        verdict, label = content.get("verdict"), content.get("label")
        changed = self.marks.set(rows, verdict, None if label is None else int(label))
        return {"changed": changed, **self.decided()}

    def undo(self) -> dict[str, Any]:
        """Take the last decision back."""
        rows = self.marks.undo()
        return {"changed": len(rows), "row": int(rows[0]) if len(rows) == 1 else None, **self.decided()}

    def close(self) -> None:
        """Stop reading, and save what is not saved; what cannot be is logged."""
        self.worker.close()
        try:
            self.marks.save()
        except DatasetError as error:
            logger.warning("%s", error)

    @cached_property
    def _unit(self) -> Unit:
        size = np.abs(self._scores.influence)
        size = size[np.isfinite(size)]
        return Unit.of([float(np.quantile(size, 0.99))] if len(size) else [])

    def _columns(self) -> list[dict[str, Any]]:
        return [
            {
                "name": name,
                "title": column.title,
                "group": column.group,
                "large_first": column.large_first,
                "edges": histogram_edges(self.table, name),
                "all": column.bins.counts(),
                "scaled": name in ("influence", "magnitude", "standard_error"),
            }
            for name, column in self.table.numbers.items()
        ]

    def _view(self, number: int) -> View:
        with self._lock:
            if number not in self._views:
                raise DatasetError("this view is no longer kept; filter again")
            self._views.move_to_end(number)
            return self._views[number]

    def _query_label(self, query: int) -> str | None:
        if self._neighbours is not None and self._neighbours.grouped:
            names = [] if self._classes is None else self._classes.names
            return names[query] if 0 <= query < len(names) else f"group {query}"
        return self._query_labels.get(query, Said()).label

    def _telling(self, teller: Teller) -> Any:
        yield from teller.everything()
        self.marks.known()
        self.marks.save()
