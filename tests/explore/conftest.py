"""One training to explore, a server of it, and a browser where there is one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from explored import Client, Explored, digits, until

from diffin.explore import Explorer, explore

Serve = Callable[..., Explorer]


@pytest.fixture(scope="session")
def explored(tmp_path_factory: pytest.TempPathFactory) -> Explored:
    return digits(tmp_path_factory.mktemp("explored"))


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """``serve(scores, problem, ...)``; decisions go into a folder of the test."""
    served: list[Explorer] = []

    def serve(*given: Any, **options: Any) -> Explorer:
        options = {"decisions": tmp_path / "decisions.json", "browser": False, "block": False, **options}
        served.append(explore(*given, **options))
        return served[-1]

    yield serve
    for explorer in served:
        explorer.close()


@pytest.fixture
def explorer(explored: Explored, serve: Serve) -> Explorer:
    """Everything at once."""
    folder = explored.folder
    return serve(
        folder / "scores",
        explored.problem,
        run=folder / "run",
        suspects=folder / "suspects",
        attribution=folder / "pairs",
    )


@pytest.fixture
def client(explorer: Explorer) -> Client:
    return Client(explorer)


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """``open_page(explorer, **context options)``; nothing is asked of any other place, and nothing complains."""
    contexts: list[Any] = []
    complaints: list[str] = []

    def open_page(explorer: Explorer, **options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1400, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        own = explorer.url.partition("?")[0]
        page.on("console", lambda message: complaints.append(f"console {message.type}: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.on("request", lambda request: _check(request.url, own, complaints))
        page.goto(explorer.url)
        until(page, "document.body.dataset.read === 'all'")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def _check(url: str, own: str, complaints: list[str]) -> None:
    if not url.startswith((own, "data:", "blob:")):
        complaints.append(f"request: {url}")
