"""The review page in a real browser, and what becomes of the decisions that it exports."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diffin.actions.clean.decisions import Decision, read_decisions
from diffin.errors import DatasetError
from diffin.problem import Problem
from diffin.report.review import Doubt, write_review

OpenPage = Callable[..., Any]

CLASSES = [f"class {number}" for number in range(10)]
LABELS = [number % 10 for number in range(60)]
DOUBTS = [
    Doubt(12, 2, 7, 0.98, (("mean loss", "4.1"),)),
    Doubt(3, 3, None, 0.8),
    Doubt(40, 0, 1, 0.6),
    Doubt(7, 7, 2, 0.4),
]


@pytest.fixture
def page_path(digits: Problem, tmp_path: Path) -> Path:
    return write_review(DOUBTS, tmp_path / "review.html", problem=digits, classes=CLASSES, samples=60)


def exported(page: Any, folder: Path) -> Path:
    with page.expect_download() as download:
        page.locator("#export").click()
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    return path


@pytest.mark.browser
def test_the_keyboard_alone_decides_about_all(page_path: Path, open_page: OpenPage, tmp_path: Path) -> None:
    page = open_page(page_path)
    assert page.locator("#export").is_disabled()
    for key in ("r", "d", "k", "5"):
        page.keyboard.press(key)
    assert page.locator("#left").inner_text() == "0"
    assert [page.locator(f"#count-{name}").inner_text() for name in ("relabel", "drop", "keep")] == ["2", "1", "1"]
    decisions = read_decisions(exported(page, tmp_path), labels=LABELS, classes=10)
    assert decisions == [
        Decision(12, 2, "relabel", 7),
        Decision(3, 3, "drop"),
        Decision(40, 0, "keep"),
        Decision(7, 7, "relabel", 5),
    ]


@pytest.mark.browser
def test_the_first_sample_is_shown_with_its_evidence(page_path: Path, open_page: OpenPage) -> None:
    page = open_page(page_path)
    assert page.locator("#desk-title").inner_text() == "Sample #12, 1 of 4"
    facts = page.locator("#desk-facts").inner_text()
    assert all(words in facts for words in ("class 2", "class 7", "98%", "mean loss", "4.1"))
    width = page.locator("#desk-media img").evaluate("i => [i.naturalWidth, i.clientWidth]")
    assert width[0] == 8
    assert width[1] > 150


@pytest.mark.browser
def test_the_mouse_can_choose_any_class_and_take_it_back(page_path: Path, open_page: OpenPage) -> None:
    page = open_page(page_path)
    page.locator("#strip .card").nth(2).click()
    page.locator("#class").select_option("9")
    badge = page.locator("#strip .card").nth(2).locator(".badge")
    assert badge.inner_text() == "→ class 9"
    page.locator("#strip .card").nth(2).click()
    page.keyboard.press("u")
    assert not badge.is_visible()
    assert page.locator("#left").inner_text() == "4"


@pytest.mark.browser
def test_a_suspect_without_a_suggestion_cannot_be_relabelled_by_key(page_path: Path, open_page: OpenPage) -> None:
    page = open_page(page_path)
    page.keyboard.press("ArrowRight")
    assert page.locator("#relabel").is_disabled()
    page.keyboard.press("r")
    assert page.locator("#left").inner_text() == "4"


@pytest.mark.browser
def test_decisions_survive_a_reload(page_path: Path, open_page: OpenPage) -> None:
    page = open_page(page_path)
    # A reload may take another process, which is handed what was stored a moment later: not before another tab has it.
    other = page.context.new_page()
    other.goto(page.url)
    page.keyboard.press("d")
    other.wait_for_function("localStorage.length > 0")
    page.reload()
    assert page.locator("#count-drop").inner_text() == "1"


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_narrow_screen(page_path: Path, open_page: OpenPage, scheme: str) -> None:
    page = open_page(page_path, viewport={"width": 360, "height": 740}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


@pytest.mark.browser
def test_hostile_class_names_stay_text(digits: Problem, tmp_path: Path, open_page: OpenPage) -> None:
    attack = "</script><script>window.attacked = true</script><img src=x onerror='window.attacked = true'>"
    path = write_review(DOUBTS, tmp_path / "r.html", problem=digits, classes=[attack, *CLASSES[1:]], samples=60)
    page = open_page(path)
    page.locator("#strip .card").nth(2).click()
    assert page.evaluate("window.attacked === undefined")
    assert attack in page.locator("#desk-facts").inner_text()


def write(folder: Path, **changes: Any) -> Path:
    content = {"format": 1, "kind": "diffin-decisions", "samples": 60, "decisions": [], **changes}
    path = folder / "decisions.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": 2}, "format"),
        ({"samples": 59}, "59 samples"),
        ({"decisions": [{"index": 60, "given": 0, "decision": "drop"}]}, "no decision"),
        ({"decisions": [{"index": 5, "given": 4, "decision": "drop"}]}, "labelled 4, and now it is 5"),
        ({"decisions": [{"index": 5, "given": 5, "decision": "relabel"}]}, "no decision"),
        ({"decisions": [{"index": 5, "given": 5, "decision": "relabel", "label": 10}]}, "no decision"),
        ({"decisions": [{"index": True, "given": 1, "decision": "drop"}]}, "no decision"),
        ({"decisions": [{"index": 5, "given": 5, "decision": "drop"}] * 2}, "twice"),
        ({"decisions": ["drop"]}, "no decision"),
    ],
)
def test_what_is_no_decision_about_these_data_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(DatasetError, match=words):
        read_decisions(write(tmp_path, **changes), labels=LABELS, classes=10)


def test_a_page_without_doubts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="threshold"):
        write_review([], tmp_path / "r.html", classes=CLASSES, samples=60)
