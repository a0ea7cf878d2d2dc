"""Decisions: what the file holds, who reads it, and the way back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffin.actions.clean.decisions import Decision, read_decisions
from diffin.errors import DatasetError
from diffin.explore.marks import Marks

LABELS = [k % 5 for k in range(20)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "decisions.json"


@pytest.fixture
def marks(path: Path) -> Marks:
    return made(path)


def made(path: Path) -> Marks:
    return Marks(20, path, given=np.array(LABELS, dtype=np.int32), classes=5)


def test_cleaning_reads_what_was_decided(marks: Marks, path: Path) -> None:
    marks.set([7], "drop")
    marks.set([3, 12], "relabel", 4)
    marks.set([2], "keep")
    assert marks.save()
    assert read_decisions(path, labels=LABELS, classes=5) == [
        Decision(2, 2, "keep"), Decision(3, 3, "relabel", 4), Decision(7, 2, "drop"), Decision(12, 2, "relabel", 4),
    ]  # fmt: skip
    assert marks.counts == {"keep": 1, "drop": 1, "relabel": 2}


def test_the_class_that_a_sample_has_is_kept(marks: Marks) -> None:
    marks.set([3, 4], "relabel", 4)
    assert marks.counts == {"keep": 1, "drop": 0, "relabel": 1}


def test_undoing_goes_back_step_by_step(marks: Marks) -> None:
    states = [marks.codes.copy()]
    for rows, verdict in ([[1, 2, 3], "drop"], [[2], "keep"], [range(20), "drop"], [[5, 6], None]):
        marks.set(rows, verdict)
        states.append(marks.codes.copy())
    for before in reversed(states[:-1]):
        marks.undo()
        assert (marks.codes == before).all()
    assert marks.undoable == 0
    assert len(marks.undo()) == 0


def test_what_changes_nothing_need_not_be_undone(marks: Marks) -> None:
    assert marks.set([1], "drop") == 1
    assert marks.set([1], "drop") == 0
    assert marks.undoable == 1


def test_decisions_are_gone_on_with(marks: Marks, path: Path) -> None:
    marks.set([1, 8], "drop")
    marks.set([3], "relabel", 1)
    marks.save()
    again = made(path)
    assert (again.codes == marks.codes).all()
    assert (again.labels == marks.labels).all()
    again.set([1], None)
    assert again.save()
    assert made(path).counts == {"keep": 0, "drop": 1, "relabel": 1}


def test_nothing_is_written_without_a_change_and_no_remains_are_left(marks: Marks, path: Path) -> None:
    assert not marks.save()
    assert not path.exists()
    marks.set([1], "drop")
    assert marks.save()
    assert not marks.save()
    assert [file.name for file in path.parent.iterdir()] == ["decisions.json"]


def test_a_file_that_something_else_has_changed_is_not_written_over(marks: Marks, path: Path) -> None:
    marks.set([1], "drop")
    marks.save()
    path.write_text(path.read_text() + "\n")
    marks.set([2], "drop")
    with pytest.raises(DatasetError, match="changed by something else"):
        marks.save()
    assert 2 not in [entry["index"] for entry in json.loads(path.read_text())["decisions"]]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "other"}, "of format 1"),
        ({"format": 9}, "of format 1"),
        ({"samples": 19}, "19 samples"),
        ({"decisions": [{"index": 20, "given": 0, "decision": "drop"}]}, "no decision"),
        ({"decisions": [{"index": 2, "given": 2, "decision": "burn"}]}, "burn"),
        ({"decisions": [{"index": 2, "given": 2, "decision": "relabel"}]}, "no decision"),
        ({"decisions": [{"index": 2, "given": 3, "decision": "drop"}]}, "labelled 3 then"),
        ({"decisions": None}, "holds no decisions"),
    ],
)
def test_a_file_about_something_else_is_refused_and_stays(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    content = json.dumps({"format": 1, "kind": "diffin-decisions", "samples": 20, "decisions": [], **changes})
    path = tmp_path / "decisions.json"
    path.write_text(content)
    with pytest.raises(DatasetError, match=words):
        made(path)
    assert path.read_text() == content


def test_a_file_that_is_no_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "decisions.json").write_text("no json")
    with pytest.raises(DatasetError, match="holds no decisions"):
        made(tmp_path / "decisions.json")


@pytest.mark.parametrize(
    ("rows", "verdict", "label"),
    [
        ([20], "drop", None),
        ([-1], "drop", None),
        ([1], "burn", None),
        ([1], "relabel", None),
        ([1], "relabel", 5),
        ([1], "keep", 1),
    ],
)
def test_what_is_no_decision_is_refused(marks: Marks, rows: list[int], verdict: str, label: int | None) -> None:
    with pytest.raises(DatasetError, match=r"pass keep|needs one of"):
        marks.set(rows, verdict, label)  # type: ignore[arg-type]
    assert marks.undoable == 0


def test_what_is_chosen_can_be_exported(marks: Marks) -> None:
    marks.set([0, 19], "drop")
    marks.set([3], "relabel", 0)
    chosen = marks.chosen()
    assert chosen.size == 20
    assert chosen.index.tolist() == list(range(1, 19))
    assert chosen.relabelled == {3: 0}


def test_without_classes_samples_can_be_dropped_but_not_relabelled() -> None:
    marks = Marks(4)
    marks.set([2], "drop")
    assert marks.to_json()["decisions"] == [{"index": 2, "given": None, "decision": "drop"}]
    assert marks.chosen().index.tolist() == [0, 1, 3]
    with pytest.raises(DatasetError, match="0 classes"):
        marks.set([1], "relabel", 0)


def test_classes_that_become_known_are_written(path: Path) -> None:
    given = np.full(20, -1, dtype=np.int32)
    marks = Marks(20, path, given=given, classes=5)
    marks.set([4], "drop")
    marks.save()
    assert json.loads(path.read_text())["decisions"][0]["given"] is None
    given[:] = LABELS
    marks.known()
    assert marks.save()
    assert read_decisions(path, labels=LABELS, classes=5) == [Decision(4, 4, "drop")]
