"""The page in a real browser."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from explored import SAMPLES, TOP, Explored, until
from torch import nn
from torch.utils.data import Dataset

import diffin
from diffin.actions.clean import read_decisions
from diffin.explore import Explorer
from diffin.tasks import Classification
from training import record

OpenPage = Callable[..., Any]
Serve = Callable[..., Explorer]

pytestmark = pytest.mark.browser

ATTACK = "</script><script>window.attacked = true</script><img src=x onerror='window.attacked = true'>"


def listed(page: Any) -> list[int]:
    """The samples in sight, in order."""
    script = "cards => cards.map((c) => [Number(c.dataset.place), Number(c.dataset.id)])"
    return [index for _, index in sorted(page.locator("#grid .card[data-id]").evaluate_all(script))]


def change(page: Any, action: Callable[[], Any]) -> None:
    """Do something and wait for the list that it brings."""
    before = page.evaluate("document.body.dataset.view")
    action()
    until(page, f"document.body.dataset.view !== '{before}'")


def shown_pictures(page: Any) -> None:
    until(
        page,
        "document.querySelectorAll('#grid .card img').length >= 8 && !document.querySelector('#grid .card .waiting')",
    )


@pytest.fixture
def page(explorer: Explorer, open_page: OpenPage) -> Any:
    return open_page(explorer)


def test_samples_stand_in_the_order_of_their_influence_and_are_shown(page: Any, explored: Explored) -> None:
    shown_pictures(page)
    found = listed(page)
    assert found == explored.scores.most_harmful(len(found)).tolist()
    sizes = page.locator("#grid .card img").evaluate_all("i => i.map((x) => [x.naturalWidth, x.clientWidth])")
    assert all(natural == 8 and shown > 80 for natural, shown in sizes)


def test_only_what_is_in_sight_exists(page: Any) -> None:
    assert page.locator("#grid .card").count() < 60
    page.evaluate("(grid => { grid.scrollTop = grid.scrollHeight; })(document.getElementById('grid'))")
    until(page, f"[...document.querySelectorAll('#grid .card')].some((c) => c.dataset.place === '{SAMPLES - 1}')")
    assert page.locator("#grid .card").count() < 60


def test_the_token_is_gone_from_the_address_and_a_reload_works(page: Any, explorer: Explorer) -> None:
    assert "token" not in page.url
    page.reload()
    until(page, "document.body.dataset.read === 'all'")
    assert page.locator("#title").inner_text() == "Explore"


def test_a_link_on_another_site_opens_the_page_and_reloading_it_works(explorer: Explorer, browser: Any) -> None:
    class Link(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(f'<a id="link" href="{explorer.url}">explore</a>'.encode())

        def log_message(self, *given: Any) -> None: ...

    server = http.server.HTTPServer(("127.0.0.1", 0), Link)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    context = browser.new_context()
    page = context.new_page()
    # Another site: localhost is not 127.0.0.1.
    page.goto(f"http://localhost:{server.server_address[1]}/")
    page.locator("#link").click()
    until(page, "document.body.dataset.read === 'all'")
    for _ in range(2):
        page.reload()
        until(page, "document.body?.dataset.read === 'all'")
    context.close()
    server.shutdown()


def test_a_class_is_chosen_and_the_order_turned(page: Any, explored: Explored) -> None:
    labels, influence = explored.problem.train.tensors[1].numpy(), explored.scores.influence
    change(page, lambda: page.get_by_label("digit 3").first.check())
    members = np.flatnonzero(labels == 3)
    expected = members[np.argsort(-influence[members], kind="stable")]
    assert listed(page) == expected[: len(listed(page))].tolist()
    assert page.locator("#count").inner_text() == f"{len(members)} of {SAMPLES} samples"
    change(page, lambda: page.locator("#direction").click())
    assert listed(page)[0] == expected[-1]
    change(page, lambda: page.locator("#sort").select_option("loss"))
    assert listed(page)[0] == members[np.argmax(explored.scores.loss[members])]


def test_a_range_is_brushed_or_typed(page: Any, explored: Explored) -> None:
    influence = explored.scores.influence
    histogram = page.locator("#filters .histogram").first
    box = histogram.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 1, box["y"] + 20, steps=4)
    change(page, page.mouse.up)
    count = int(page.locator("#count").inner_text().split()[0])
    bound = float(page.get_by_label("influence, least").input_value())
    factor = page.evaluate("fetch('/api/about').then((a) => a.json()).then((a) => a.factor)")
    # The input shows four digits of the edge of a bin.
    assert abs(count - int((influence * factor >= bound).sum())) <= 1
    page.get_by_label("influence, least").fill("0")
    change(page, lambda: page.get_by_label("influence, least").press("Enter"))
    assert page.locator("#count").inner_text().startswith(f"{int((influence >= 0).sum())} of")
    change(page, lambda: page.get_by_label("Any influence").click())
    assert page.locator("#count").inner_text() == f"{SAMPLES} samples"


def test_words_are_searched_and_all_filters_cleared(page: Any, explored: Explored) -> None:
    change(page, lambda: page.locator("#search").fill("#77"))
    assert 77 in listed(page)
    change(page, lambda: page.get_by_text("Clear all filters").click())
    assert page.locator("#count").inner_text() == f"{SAMPLES} samples"


def test_what_the_model_denies_is_found(page: Any) -> None:
    change(page, lambda: page.get_by_label("disagree").check())
    pairs = page.locator("#grid .card .said").evaluate_all(
        "s => s.map((d) => [...d.querySelectorAll('dd')].map((x) => x.textContent))"
    )
    assert pairs
    assert all(label != model.partition(" (")[0] for label, model in pairs)


def test_a_filter_survives_a_reload(page: Any) -> None:
    change(page, lambda: page.get_by_label("digit 3").first.check())
    before = listed(page)
    page.reload()
    until(page, "document.body.dataset.read === 'all'")
    assert listed(page) == before
    assert page.get_by_label("digit 3").first.is_checked()


def test_a_click_shows_course_signals_and_queries(page: Any, explored: Explored) -> None:
    first = int(explored.scores.most_harmful(1)[0])
    page.locator("#grid .card").first.click()
    until(page, "!document.getElementById('detail').hidden")
    assert page.locator("#detail-title").inner_text() == f"Sample #{first}"
    assert page.locator("#detail .course rect").count() == len(explored.scores.steps)
    text = page.locator("#detail").inner_text()
    assert all(name.replace("_", " ") in text for name in explored.suspects.signals)
    page.locator("#detail .neighbour").first.click()
    until(page, "document.getElementById('detail-title').textContent.startsWith('Query')")
    assert page.locator("#detail .neighbour").count() == 2 * TOP
    page.locator("#detail").get_by_label("Back").click()
    until(page, f"document.getElementById('detail-title').textContent === 'Sample #{first}'")
    page.keyboard.press("Escape")
    assert page.locator("#detail").is_hidden()
    assert page.evaluate("Number(document.activeElement.dataset.id)") == first


def test_queries_are_listed_with_their_proponents(page: Any, explored: Explored) -> None:
    page.locator("#tab-queries").click()
    until(page, "document.querySelectorAll('#grid .card img').length >= 8")
    page.locator("#grid .card").nth(2).click()
    until(page, "document.querySelectorAll('#detail .neighbour').length > 0")
    names = page.locator("#detail .neighbour-name").all_inner_texts()
    found = explored.attribution
    assert names == [f"#{index}" for index in (*found.proponents[2], *found.opponents[2])]
    change(page, lambda: page.locator("#tab-samples").click())
    assert listed(page)


def test_the_keyboard_alone_moves_decides_and_undoes(page: Any, explored: Explored, tmp_path: Path) -> None:
    order, given = explored.scores.most_harmful(20).tolist(), explored.suspects.given.tolist()
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("k")
    assert page.evaluate("Number(document.activeElement.dataset.id)") == order[1]
    for number, key in enumerate(("d", "g", "r", "7")):
        page.keyboard.press(key)
        until(page, f"document.activeElement.dataset.id === '{order[number + 2]}'")
    decided = {d.index: d for d in read_decisions(tmp_path / "decisions.json", labels=given, classes=10)}
    assert [decided[index].verdict for index in order[1:3]] == ["drop", "keep"]
    assert decided[order[3]].label == explored.suspects.suggested[order[3]]
    seventh = decided[order[4]]
    assert (seventh.verdict, seventh.label) == (("keep", None) if given[order[4]] == 7 else ("relabel", 7))
    page.keyboard.press("u")
    until(page, "document.getElementById('said').textContent.startsWith('Undone')")
    until(page, f"document.activeElement.dataset.id === '{order[4]}'")
    assert len(read_decisions(tmp_path / "decisions.json", labels=given, classes=10)) == 3
    page.reload()
    until(page, "document.body.dataset.read === 'all'")
    assert page.locator("#grid .badge.drop").count() == 1


def test_arrows_walk_through_lines_and_to_the_ends(page: Any, explored: Explored) -> None:
    page.keyboard.press("j")
    columns = int(page.locator("#grid").get_attribute("aria-colcount"))
    at = "Number(document.activeElement.dataset.place)"
    for key, place in (("ArrowDown", 1 + columns), ("ArrowRight", 2 + columns), ("ArrowUp", 2), ("ArrowLeft", 1)):
        page.keyboard.press(key)
        assert page.evaluate(at) == place
    page.keyboard.press("End")
    until(page, f"{at} === {SAMPLES - 1}")
    page.keyboard.press("Home")
    until(page, f"{at} === 0")


def test_several_are_decided_about_at_once(page: Any, explored: Explored, tmp_path: Path) -> None:
    page.keyboard.press("Home")
    for _ in range(3):
        page.keyboard.press(" ")
        page.keyboard.press("j")
    assert "3 selected" in page.locator("#count").inner_text()
    page.keyboard.press("d")
    until(page, "document.getElementById('decided').textContent.includes('3 to drop')")
    assert page.locator("#grid .badge.drop").count() == 3


def test_all_that_is_shown_is_decided_about_and_taken_back(page: Any, explored: Explored) -> None:
    members = int((explored.suspects.given == 4).sum())
    change(page, lambda: page.get_by_label("digit 4").first.check())
    page.keyboard.press("m")
    assert page.locator("#all").is_visible()
    page.get_by_text("Drop all").click()
    until(page, f"document.getElementById('decided').textContent.includes('{members} to drop')")
    page.locator("#undo").click()
    until(page, "document.getElementById('decided').textContent === 'nothing decided'")


def test_decisions_are_downloaded_as_they_are_saved(page: Any, explored: Explored, tmp_path: Path) -> None:
    page.keyboard.press("Home")
    page.keyboard.press("d")
    until(page, "!document.getElementById('download').disabled")
    with page.expect_download() as download:
        page.locator("#download").click()
    download.value.save_as(tmp_path / "downloaded.json")
    given = explored.suspects.given.tolist()
    found, kept = (
        read_decisions(tmp_path / name, labels=given, classes=10) for name in ("downloaded.json", "decisions.json")
    )
    assert found == kept
    assert len(found) == 1


def test_help_says_the_keys_and_letters_do_nothing_in_fields(page: Any, explorer: Explorer) -> None:
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    page.keyboard.press("d")
    page.keyboard.press("Escape")
    assert not page.locator("#help").is_visible()
    page.keyboard.press("/")
    change(page, lambda: page.keyboard.type("digit"))
    assert explorer.marks.undoable == 0
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.closest('#grid') !== null")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_screen_holds_everything(explorer: Explorer, open_page: OpenPage, scheme: str) -> None:
    page = open_page(explorer, viewport={"width": 390, "height": 800}, color_scheme=scheme)
    shown_narrow = "document.querySelectorAll('#grid .card img').length >= 4"
    until(page, shown_narrow)
    wide = """Math.max(document.documentElement.scrollWidth,
        ...[...document.querySelectorAll('#grid, #filters, #detail')].map((e) => e.scrollWidth))"""
    assert page.evaluate(wide) <= 390
    page.locator("#show-filters").click()
    assert page.locator("#search").is_visible()
    change(page, lambda: page.get_by_label("disagree").check())
    assert page.evaluate(wide) <= 390
    page.locator("#show-filters").click()
    assert not page.locator("#search").is_visible()
    page.locator("#grid .card").first.click()
    until(page, "!document.getElementById('detail').hidden")
    assert page.evaluate(wide) <= 390
    page.locator("#detail").get_by_label("Close").click()
    assert page.locator("#detail").is_hidden()


def test_dark_mode_is_dark(explorer: Explorer, open_page: OpenPage) -> None:
    script = "getComputedStyle(document.body).backgroundColor"
    light, dark = (open_page(explorer, color_scheme=scheme).evaluate(script) for scheme in ("light", "dark"))
    brightness = [sum(map(float, colour.partition("(")[2].rstrip(")").split(",")[:3])) / 3 for colour in (light, dark)]
    assert brightness[0] > 200 > 60 > brightness[1]


def test_markup_in_the_data_stays_text(explored: Explored, serve: Serve, open_page: OpenPage) -> None:
    task = Classification(explored.problem.task.model, class_names=[ATTACK] * 10)
    problem = replace(explored.problem, task=task, show=lambda item: {"text": ATTACK, ATTACK: ATTACK})
    columns = pa.table({ATTACK: [ATTACK, "other"] * (SAMPLES // 2)})
    page = open_page(serve(explored.scores, problem, columns=columns, title=ATTACK))
    page.locator("#grid .card").first.click()
    until(page, "!document.getElementById('detail').hidden")
    assert page.locator("#title").inner_text() == ATTACK
    assert ATTACK in page.locator("#detail").inner_text()
    assert page.evaluate("window.attacked") is None
    assert page.locator("img[src=x]").count() == 0


def test_no_script_but_the_page_s_own_can_run(explorer: Explorer, browser: Any) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.goto(explorer.url)
    page.evaluate("""(() => {
        const added = document.createElement('script');
        try { added.textContent = 'window.attacked = true'; } catch { /* refused */ }
        document.body.append(added);
    })()""")
    assert page.evaluate("window.attacked") is None
    markup = """(() => {
        try { document.body.innerHTML = '<b></b>'; } catch (error) { return error.name; }
        return 'taken';
    })()"""
    assert page.evaluate(markup) == "TypeError"
    context.close()


class Reviews(Dataset[Any]):
    """Short texts of two classes."""

    def __len__(self) -> int:
        return 60

    def __getitem__(self, row: int) -> tuple[str, int]:
        return f"Review {row}. {'A grand film, seen twice.' if row % 2 else 'Dull, and long.'}", row % 2


class Words(nn.Module):
    """Takes texts of so many characters."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, 2)

    def forward(self, lengths: torch.Tensor) -> torch.Tensor:
        return self.head(lengths)


def collate(items: list[tuple[str, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    lengths = torch.tensor([[len(text) / 50] for text, _ in items])
    return lengths, torch.tensor([label for _, label in items])


def scored(problem: diffin.Problem, tensors: Any, folder: Path) -> diffin.Scores:
    trajectory = record(folder, problem.task, tensors, steps=20)
    return diffin.score(
        problem.task, trajectory, problem.train, query=problem.train, collate=problem.collate, estimator=diffin.TracIn(),
        progress=False,
    )  # fmt: skip


def test_texts_are_shown_and_searched(serve: Serve, open_page: OpenPage, tmp_path: Path) -> None:
    data = Reviews()
    problem = diffin.Problem(Classification(Words()), data, collate=collate)
    tensors = torch.utils.data.TensorDataset(*collate([data[row] for row in range(60)]))
    page = open_page(serve(scored(problem, tensors, tmp_path / "run"), problem, run=tmp_path / "run"))
    until(page, "document.querySelectorAll('#grid .card .text').length >= 8")
    change(page, lambda: page.locator("#search").fill("GRAND film"))
    until(page, "document.querySelectorAll('#grid .card .text').length >= 8")
    assert page.locator("#count").inner_text() == "30 of 60 samples"
    assert all("grand film" in text for text in page.locator("#grid .card .text").all_inner_texts())


def test_rows_and_slices_are_shown(serve: Serve, open_page: OpenPage, tmp_path: Path) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(50, 3)
    data = torch.utils.data.TensorDataset(inputs, (inputs[:, 0] > 0).long())
    names = ("age", "height", "weight")
    show = lambda item: dict(zip(names, item[0].tolist(), strict=True))  # noqa: E731
    problem = diffin.Problem(Classification(nn.Linear(3, 2)), data, show=show)
    columns = pa.table({"site": ["north", "south"] * 25, "height": inputs[:, 1].tolist()})
    page = open_page(serve(scored(problem, data, tmp_path / "run"), problem, columns=columns))
    until(page, "document.querySelectorAll('#grid .card .row').length >= 8")
    assert "height" in page.locator("#grid .card .row").first.inner_text()
    change(page, lambda: page.get_by_label("south").check())
    assert page.locator("#count").inner_text() == "25 of 50 samples"
    change(page, lambda: page.locator("#sort").select_option("file:height"))
    odd = np.arange(1, 50, 2)
    assert listed(page)[0] == odd[np.argmax(inputs[odd, 1].numpy())]


def test_a_server_that_has_gone_is_said(explored: Explored, serve: Serve, browser: Any) -> None:
    explorer = serve(explored.scores)
    context = browser.new_context()
    page = context.new_page()
    page.goto(explorer.url)
    until(page, "document.body.dataset.read === 'all'")
    explorer.close()
    page.keyboard.press("Home")
    page.keyboard.press("d")
    until(page, "!document.getElementById('trouble').hidden")
    assert "does not answer" in page.locator("#trouble").inner_text()
    context.close()
