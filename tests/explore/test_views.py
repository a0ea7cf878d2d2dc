"""Filtering and sorting, against loops over single samples."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from explored import question

from diffin.errors import DatasetError
from diffin.explore.columns import BINS, Bins, Category, Numbers, Table, Texts
from diffin.explore.marks import DROP, Marks
from diffin.explore.views import Asked, View

SIZE = 500
NAMES = ["ant", "bee", "cat"]


@pytest.fixture
def table() -> Table:
    generator = np.random.default_rng(0)
    influence, loss = generator.normal(size=SIZE), generator.exponential(size=SIZE)
    influence[[3, 99]] = np.nan
    # Equal numbers, to see that their order is that of the samples.
    loss[100:120] = 1.0
    label, predicted = (generator.integers(-1, 3, SIZE).astype(np.int32) for _ in range(2))
    return Table(
        SIZE,
        {"influence": Numbers("influence", influence), "loss": Numbers("loss", loss)},
        {"label": Category("label", label, NAMES), "predicted": Category("model", predicted, NAMES)},
        {"key": Texts([f"Key-{i:03d}" if i % 7 else None for i in range(SIZE)])},
    )


@pytest.fixture
def marks() -> Marks:
    marks = Marks(SIZE)
    marks.set(range(50, 80), "drop")
    return marks


def naive(table: Table, marks: Marks, asked: dict[str, Any]) -> list[int]:
    """One sample after the other."""
    found = []
    for i in range(table.size):
        values = {name: column.values[i] for name, column in table.numbers.items()}
        codes = {name: column.codes[i] for name, column in table.categories.items()}
        if any(wanted and codes[name] not in wanted for name, wanted in asked["categories"].items()):
            continue
        if any(
            not (
                (low is None or values[name] >= low)
                and (high is None or values[name] <= high)
                and values[name] == values[name]
            )
            for name, (low, high) in asked["ranges"].items()
        ):
            continue
        known = codes["label"] >= 0 and codes["predicted"] >= 0
        if asked["agreement"] is not None and not (
            known and (codes["label"] == codes["predicted"]) == asked["agreement"]
        ):
            continue
        if asked["failed"] is not None and np.isnan(values["influence"]) != asked["failed"]:
            continue
        if asked["marks"] and marks.codes[i] not in asked["marks"]:
            continue
        if asked["text"]:
            words = asked["text"].lower()
            key = f"key-{i:03d}" if i % 7 else ""
            names = [NAMES[code] for code in codes.values() if code >= 0]
            if not (words in key or any(words in name for name in names) or words.lstrip("#") == str(i)):
                continue
        found.append(i)
    if asked["sort"] == "index":
        return found[::-1] if asked["descending"] else found
    sign = -1 if asked["descending"] else 1
    values = table.numbers[asked["sort"]].values
    return sorted(found, key=lambda i: (np.isnan(values[i]), 0 if np.isnan(values[i]) else sign * values[i], i))


QUESTIONS: list[dict[str, Any]] = [
    {},
    {"descending": False},
    {"sort": "index"},
    {"sort": "index", "descending": False},
    {"sort": "loss"},
    {"categories": {"label": [0, 2]}},
    {"categories": {"label": [-1], "predicted": [1]}},
    {"ranges": {"influence": [None, 0.0]}, "sort": "loss"},
    {"ranges": {"influence": [-0.5, 0.5], "loss": [0.1, None]}},
    {"agreement": True},
    {"agreement": False, "categories": {"label": [1]}},
    {"failed": True},
    {"failed": False, "text": "bee"},
    {"marks": [0]},
    {"marks": [DROP], "sort": "loss", "descending": False},
    {"text": "KEY-04"},
    {"text": "#17"},
    {"text": "no such words"},
]


@pytest.mark.parametrize("asked", QUESTIONS, ids=str)
def test_a_view_holds_what_a_loop_finds_in_its_order(table: Table, marks: Marks, asked: dict[str, Any]) -> None:
    content = question(**asked)
    view = View.of(Asked.from_json(content, table), table, marks)
    assert view.rows.tolist() == naive(table, marks, content)


@pytest.mark.parametrize("asked", QUESTIONS, ids=str)
def test_facets_count_as_if_nothing_were_chosen_in_them(table: Table, marks: Marks, asked: dict[str, Any]) -> None:
    content = question(**asked)
    view = View.of(Asked.from_json(content, table), table, marks)
    for name in ("label", "predicted"):
        others = {other: codes for other, codes in content["categories"].items() if other != name}
        rows = naive(table, marks, {**content, "categories": others})
        codes = table.categories[name].codes[rows]
        assert view.facets[name] == [int((codes == code).sum()) for code in range(3)]


@pytest.mark.parametrize("asked", QUESTIONS, ids=str)
def test_histograms_count_as_if_their_range_were_open(table: Table, marks: Marks, asked: dict[str, Any]) -> None:
    content = question(**asked)
    view = View.of(Asked.from_json(content, table), table, marks)
    for name in ("influence", "loss"):
        others = {other: bounds for other, bounds in content["ranges"].items() if other != name}
        rows = naive(table, marks, {**content, "ranges": others})
        assert sum(view.histograms[name]) == int(np.isfinite(table.numbers[name].values[rows]).sum())
        bins = table.numbers[name].bins.number[rows]
        assert view.histograms[name] == [int((bins == number).sum()) for number in range(BINS)]


def test_bins_hold_every_number_once_and_outliers_at_the_ends() -> None:
    values = np.concatenate([np.linspace(0, 1, 1000), [1e6, -1e6, np.nan]])
    bins = Bins.of(values)
    assert sum(bins.counts()) == 1002
    assert bins.edges[0] > -10
    assert bins.number[1000] == BINS - 1
    assert bins.number[1001] == 0
    assert bins.number[1002] == BINS
    inside = np.flatnonzero((values > bins.edges[0]) & (values < bins.edges[-1]))
    found = np.searchsorted(bins.edges, values[inside], side="right") - 1
    assert (np.abs(found - bins.number[inside]) <= 1).all()
    assert (found == bins.number[inside]).mean() > 0.99


@pytest.mark.parametrize("values", [[1.0] * 5, [np.nan] * 5, [0.0], [np.inf, 1.0, 2.0]])
def test_any_column_has_bins(values: list[float]) -> None:
    bins = Bins.of(np.array(values))
    assert np.all(np.diff(bins.edges) > 0)
    assert sum(bins.counts()) == np.isfinite(values).sum()


@pytest.mark.parametrize(
    "content",
    [
        {},
        question(sort="nothing"),
        question(ranges={"nothing": [0, 1]}),
        question(ranges={"loss": [1]}),
        question(categories={"nothing": [0]}),
        question(categories={"label": ["x"]}),
        question(marks="x"),
        [],
        None,
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(table: Table, content: Any) -> None:
    with pytest.raises(DatasetError, match=r"cannot be asked|no column"):
        Asked.from_json(content, table)


def test_a_column_that_changes_is_sorted_anew(table: Table) -> None:
    column = table.numbers["loss"]
    assert column.order(descending=True)[0] == int(np.argmax(column.values))
    column.values[7] = 1e3
    column.changed()
    assert column.order(descending=True)[0] == 7
    assert column.bins.number[7] == BINS - 1


def test_texts_that_are_still_growing_are_searched_as_far_as_they_are() -> None:
    texts = Texts(["A straße", None])
    assert texts.containing("STRASSE", 4).tolist() == [True, False, False, False]
    texts.extend(["straSSe"])
    assert texts.containing("strasse", 4).tolist() == [True, False, True, False]


def test_what_is_still_being_read_can_be_filtered_by() -> None:
    size = 300_000
    codes, values = np.zeros(size, dtype=np.int32), np.zeros(size)
    table = Table(size, {"loss": Numbers("loss", values)}, {"label": Category("label", codes, NAMES)})
    stop = threading.Event()

    def fill() -> None:
        while not stop.is_set():
            for code in (-1, 2, 0, 1):
                codes[:], values[:] = code, code
                table.numbers["loss"].changed()

    filling = threading.Thread(target=fill)
    filling.start()
    asked = question(categories={"label": [0, 2]}, sort="loss", text="cat")
    try:
        for _ in range(15):
            view = View.of(Asked.from_json(asked, table), table, Marks(size), ("loss",))
            assert len(np.unique(view.rows)) == len(view.rows)
    finally:
        stop.set()
        filling.join()
