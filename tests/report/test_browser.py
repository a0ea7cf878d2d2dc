"""The page in a real browser."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from handmade import make_scores, random_scores

from diffin.problem import Problem
from diffin.report import write_report
from diffin.tasks import Classification

OpenPage = Callable[..., Any]

pytestmark = pytest.mark.browser

ATTACK = "</script><script>window.attacked = true</script><img src=x onerror='window.attacked = true'>"


@pytest.fixture
def page_path(digits: Problem, tmp_path: Path) -> Path:
    state = digits.task.model.state_dict()
    return write_report(
        random_scores(60), tmp_path / "page.html", problem=digits, state=state, flagged={1, 2, 3}, flagged_as="flipped"
    )


def test_cards_stand_in_the_order_of_the_ranking(page_path: Path, open_page: OpenPage) -> None:
    page, scores = open_page(page_path), random_scores(60)
    for side, expected in (("harmful", scores.most_harmful(24)), ("helpful", scores.most_helpful(24))):
        found = page.locator(f"#{side} .card").evaluate_all("cards => cards.map((c) => Number(c.dataset.index))")
        assert found == expected.tolist()


def test_pictures_are_shown(page_path: Path, open_page: OpenPage) -> None:
    page = open_page(page_path)
    sizes = page.locator("#harmful .card:visible img").evaluate_all(
        "i => i.map((x) => [x.naturalWidth, x.clientWidth])"
    )
    assert len(sizes) == 12
    assert all(natural == 8 and shown > 80 for natural, shown in sizes)


def test_a_click_shows_the_course_and_escape_closes_it(page_path: Path, open_page: OpenPage) -> None:
    page = open_page(page_path)
    first = random_scores(60).most_harmful(1)[0]
    page.locator("#harmful .card").first.click()
    assert page.locator("dialog").is_visible()
    assert f"#{first}" in page.locator("#detail-title").inner_text()
    assert page.locator("#plot-detail .errorbar").count() == 1
    assert page.locator("#plot-detail .bars .point").count() == 4
    page.keyboard.press("Escape")
    assert not page.locator("dialog").is_visible()


def test_the_keyboard_alone_opens_a_course_and_walks_on(page_path: Path, open_page: OpenPage) -> None:
    page = open_page(page_path)
    expected = random_scores(60).most_helpful(2)
    page.locator("#helpful .open").first.focus()
    page.keyboard.press("Enter")
    assert f"#{expected[0]}," in page.locator("#detail-title").inner_text()
    page.keyboard.press("ArrowRight")
    assert f"#{expected[1]}," in page.locator("#detail-title").inner_text()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert f"#{expected[0]}," in page.locator("#detail-title").inner_text()
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.closest('.card').dataset.index") == str(expected[0])


def test_every_card_can_be_reached_after_showing_all(page_path: Path, open_page: OpenPage) -> None:
    page = open_page(page_path)
    assert page.locator("#harmful .card:visible").count() == 12
    page.locator("#harmful .more").click()
    assert page.locator("#harmful .card:visible").count() == 24


def test_nothing_scrolls_sideways(page_path: Path, open_page: OpenPage) -> None:
    page = open_page(page_path)
    for width in (1280, 768, 360):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.locator("#harmful .card").first.click()
        assert page.evaluate("(e => e.scrollWidth - e.clientWidth)(document.querySelector('dialog'))") <= 0
        page.keyboard.press("Escape")


def test_figures_shrink_with_the_window(page_path: Path, open_page: OpenPage) -> None:
    page = open_page(page_path)
    page.set_viewport_size({"width": 360, "height": 800})
    widths = "[...document.querySelectorAll('[data-figure] .main-svg')].map((svg) => svg.getBoundingClientRect().width)"
    for _ in range(100):
        if max(page.evaluate(widths)) <= 360:
            break
        page.wait_for_timeout(50)
    assert max(page.evaluate(widths)) <= 360


def test_long_words_do_not_widen_a_narrow_page(open_page: OpenPage, digits: Problem, tmp_path: Path) -> None:
    problem = replace(digits, show=lambda item: "x" * 500)
    path = write_report(
        random_scores(60), tmp_path / "page.html", problem=problem, title="T" * 200, extra={"k" * 90: "v" * 300}
    )
    page = open_page(path, viewport={"width": 360, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


TICK = "document.querySelector('#plot-courses .xtick text').style.fill"


def test_dark_mode_has_a_dark_ground_and_light_lines(page_path: Path, open_page: OpenPage) -> None:
    script = f"[getComputedStyle(document.body).backgroundColor, {TICK}]"
    light, dark = (open_page(page_path, color_scheme=scheme).evaluate(script) for scheme in ("light", "dark"))
    assert _brightness(light[0]) > 200 > 60 > _brightness(dark[0])
    assert _brightness(dark[1]) > _brightness(light[1])


def test_figures_follow_when_the_mode_changes(page_path: Path, open_page: OpenPage) -> None:
    page = open_page(page_path, color_scheme="light")
    light = page.evaluate(TICK)
    page.emulate_media(color_scheme="dark")
    for _ in range(50):
        if page.evaluate(TICK) != light:
            break
        page.wait_for_timeout(50)
    assert _brightness(page.evaluate(TICK)) > _brightness(light)


def test_markup_in_the_data_stays_text(open_page: OpenPage, digits: Problem, tmp_path: Path) -> None:
    problem = replace(digits, show=lambda item: ATTACK)
    assert isinstance(problem.task, Classification)
    problem.task.class_names = [ATTACK] * 10
    path = write_report(
        make_scores(random_scores(60).terms),
        tmp_path / "page.html",
        problem=problem,
        state=problem.task.model.state_dict(),
        flagged={1, 2, 3},
        flagged_as=ATTACK,
        title=ATTACK,
        extra={ATTACK: {ATTACK: ATTACK}},
    )
    page = open_page(path)
    page.locator("#harmful .card").first.click()
    assert page.locator("h1").inner_text() == ATTACK
    assert page.locator("#detail-media").inner_text() == ATTACK
    assert page.evaluate("window.attacked") is None
    assert page.locator("img[src=x]").count() == 0


def test_no_script_but_the_page_s_own_can_run(page_path: Path, browser: Any, tmp_path: Path) -> None:
    injected = tmp_path / "injected.html"
    html = page_path.read_text(encoding="utf-8")
    injected.write_text(html.replace("<main>", "<main><script>window.attacked = true</script>"), encoding="utf-8")
    page = browser.new_page()
    page.goto(injected.as_uri())
    assert page.evaluate("window.attacked") is None
    page.close()


@pytest.mark.parametrize(("count", "checkpoints"), [(1, 1), (12, 2), (40, 120)])
def test_any_number_of_samples_and_checkpoints_draws(
    open_page: OpenPage, tmp_path: Path, count: int, checkpoints: int
) -> None:
    page = open_page(write_report(random_scores(count, checkpoints), tmp_path / "page.html"))
    page.locator(".card").first.click()
    assert page.locator("#plot-detail .bars .point").count() == checkpoints


def _brightness(colour: str) -> float:
    parts = [float(x) for x in colour.partition("(")[2].rstrip(")").split(",")[:3]]
    return sum(parts) / 3
