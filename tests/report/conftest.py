"""A problem of small pictures, and a browser where there is one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from diffin.problem import Problem
from diffin.tasks import Classification


@pytest.fixture
def digits() -> Problem:
    """Sixty small pictures of ten classes, and a linear model."""
    torch.manual_seed(0)
    pictures, labels = torch.rand(60, 1, 8, 8), torch.arange(60) % 10
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    return Problem(Classification(model), TensorDataset(pictures, labels), TensorDataset(pictures, labels))


OpenPage = Callable[..., Any]


@pytest.fixture
def open_page(browser: Any) -> Iterator[OpenPage]:
    """``open_page(path, **context options)``; the page's ``complaints`` must be empty when the test ends."""
    contexts, complaints = [], []

    def open_page(path: Path, **options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(f"console {message.type}: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.on(
            "request", lambda request: complaints.append(f"request: {request.url}") if _outside(request.url) else None
        )
        page.goto(path.resolve().as_uri())
        for figure in page.locator("[data-figure]").all():
            figure.locator(".main-svg").first.wait_for(state="attached")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def _outside(url: str) -> bool:
    return not url.startswith(("file:", "data:"))
