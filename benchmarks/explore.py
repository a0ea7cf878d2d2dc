"""How fast the page of `diffin explore` is: its start, its first paint, and its answers to filters, at 100,000 samples.

    python benchmarks/explore.py                    # prints a table
    python benchmarks/explore.py --samples 1000000
    python benchmarks/explore.py --pictures docs/images    # takes the pictures of the documentation instead

Real scores, of a real training on digits that are repeated with noise; a headless Chromium on the same machine. A filter's
time runs from the event in the page, its pause for typing included, to the frame with the new cards.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from playwright.sync_api import sync_playwright
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

import diffin
from diffin.explore.desk import Desk
from diffin.explore.explorer import explore
from diffin.explore.views import Asked, View
from diffin.tasks import Classification

BROWSER = "/usr/bin/chromium"
FLAGS = ["--no-sandbox", "--disable-gpu"]
REPEATS = 5
PICTURES = [("", (1400, 860), "light"), ("-dark", (1400, 860), "dark"), ("-narrow", (390, 800), "light")]
COMMAND = "import typer; from diffin.cli.explore import explore; typer.run(explore)"

# From the event to the frame after the new list is there.
MEASURED = """([selector, kind, value]) => new Promise((done) => {
  const target = document.querySelector(selector), before = document.body.dataset.view, start = performance.now();
  const watch = new MutationObserver(() => {
    if (document.body.dataset.view === before) return;
    watch.disconnect();
    requestAnimationFrame(() => setTimeout(() => done(performance.now() - start)));
  });
  watch.observe(document.body, { attributes: true });
  if (kind === "click") target.click();
  else { target.value = value; target.dispatchEvent(new Event(kind, { bubbles: true })); }
})"""
STEPS = [
    ("a class is chosen", "#filters .boxes input", "click", ""),
    ("label and prediction disagree", "#filters .choice label:nth-of-type(3) input", "click", ""),
    ("and agree or not", "#filters .choice label:nth-of-type(1) input", "click", ""),
    ("no class is chosen", "#filters .boxes input", "click", ""),
    ("an influence of zero at least", "#filters .bounds input", "change", "0"),
    ("any influence", "#filters .bounds input", "change", ""),
    ("a slice is searched in words", "#search", "input", "north"),
    ("nothing is searched", "#search", "input", ""),
    ("sorted by loss", "#sort", "change", "loss"),
    ("turned round", "#direction", "click", ""),
    ("sorted by influence", "#sort", "change", "influence"),
]


def prepare(folder: Path, samples: int) -> diffin.Problem:
    """Train, score, and write a file of columns; of few samples, also clean and attribute."""
    pictures, labels = load_digits(return_X_y=True)
    generator = torch.Generator().manual_seed(0)
    rows = torch.arange(samples) % 1600
    images = torch.from_numpy(pictures / 16).float()[rows].reshape(-1, 1, 8, 8)
    if samples > 1600:
        images = (images + 0.1 * torch.randn(images.shape, generator=generator)).clamp(0, 1)
    classes = torch.from_numpy(labels)[rows].clone()
    wrong = torch.randperm(samples, generator=generator)[: samples // 12]
    classes[wrong] = (classes[wrong] + 1 + wrong % 8) % 10
    train = TensorDataset(images, classes)
    query = TensorDataset(
        torch.from_numpy(pictures[1600:1680] / 16).float().reshape(-1, 1, 8, 8), torch.from_numpy(labels[1600:1680])
    )
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, 10))
    problem = diffin.Problem(Classification(model), train, query)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with diffin.Recorder(
        folder / "run", model, optimizer, dataset_size=samples, total_steps=200, checkpoints=8
    ) as recorder:
        for _ in range(200):
            indices = torch.randint(samples, (64,), generator=generator)
            problem.task.losses(train[indices]).mean().backward()
            optimizer.step()
            recorder.step(indices)
            optimizer.zero_grad()
    run = diffin.Trajectory.open(folder / "run")
    asked: dict[str, Any] = {"estimator": diffin.TracIn(), "progress": False}
    diffin.score(problem.task, run, train, query=query, output=folder / "scores", **asked)
    pq.write_table(
        pa.table({"site": np.array(["north", "south", "west"])[np.arange(samples) % 3]}), folder / "columns.parquet"
    )
    if samples <= 1600:
        diffin.clean(problem.task, run, train, progress=False).save(folder / "suspects")
        diffin.attribute(problem.task, run, train, query, output=folder / "pairs", top=8, **asked)
    return problem


def of_server(folder: Path, problem: diffin.Problem) -> list[tuple[str, float]]:
    """Milliseconds of filtering and sorting alone."""
    scores = diffin.Scores.open(folder / "scores")
    state = final(folder)
    desk = Desk(scores, problem, state, None, None, folder / "columns.parquet", None, "")
    nothing: dict[str, Any] = {
        "categories": {},
        "ranges": {},
        "agreement": None,
        "failed": None,
        "marks": [],
        "text": "",
    }
    chosen = {"categories": {"label": [3]}, "ranges": {"influence": [0, None]}}
    questions: dict[str, dict[str, Any]] = {
        "server: nothing restricted": {},
        "server: class, range, sorted by loss": {**chosen, "sort": "loss"},
    }
    found = []
    for name, changes in questions.items():
        asked = Asked.from_json({**nothing, "sort": "influence", "descending": True, **changes}, desk.table)
        times = []
        for _ in range(1 + REPEATS):
            start = time.perf_counter()
            View.of(asked, desk.table, desk.marks)
            times.append(1000 * (time.perf_counter() - start))
        found.append((name, statistics.median(times[1:])))
    desk.close()
    return found


def final(folder: Path) -> Any:
    found = diffin.Trajectory.open(folder / "run").final
    assert found is not None
    return found.state


def start_of_command(folder: Path) -> tuple[float, float]:
    """Seconds from the start of the process, torch included, to the first answer, and those on the processor."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(folder / "scores"), "--columns", str(folder / "columns.parquet"), "--no-browser"],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "200"},
    )  # fmt: skip
    assert process.stdout is not None
    url = process.stdout.readline().split()[-1]
    urllib.request.urlopen(url, timeout=20).read()
    seconds = time.perf_counter() - start
    process.terminate()
    _, _, used = os.wait4(process.pid, 0)
    return seconds, used.ru_utime + used.ru_stime


def measure(folder: Path, problem: diffin.Problem) -> None:
    """Print the table."""
    rows: list[tuple[str, str, str]] = []
    commands, processor = zip(*(start_of_command(folder) for _ in range(3)), strict=True)
    rows.append(row("from the command to the first answer, s", commands, ".2f"))
    rows.append(row("  the same on the processor, s", processor, ".2f"))
    rows.append(row("  python and import torch alone, s", [imported() for _ in range(3)], ".2f"))
    starts = []
    for _ in range(3):
        start = time.perf_counter()
        with served(folder, problem) as explorer:
            urllib.request.urlopen(explorer.url, timeout=20).read()
            starts.append(time.perf_counter() - start)
    rows.append(row("diffin.explore() to the first answer, s", starts, ".2f"))
    rows += [(name + ", ms", f"{value:.1f}", "") for name, value in of_server(folder, problem)]
    with served(folder, problem) as explorer, sync_playwright() as api:
        browser = api.chromium.launch(executable_path=BROWSER, args=FLAGS)
        paints, complete = [], []
        for _ in range(REPEATS):
            page = browser.new_page(viewport={"width": 1400, "height": 900})
            page.goto(explorer.url)
            ready(page)
            paints.append(page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime"))
            complete.append(page.evaluate("performance.now()"))
            page.close()
        rows.append(row("first paint, ms", paints))
        rows.append(row("first pictures there (to 20 ms), ms", complete))
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.goto(explorer.url)
        while page.evaluate("document.body.dataset.read") != "all":
            page.wait_for_timeout(100)
        found: dict[str, list[float]] = {}
        for _ in range(REPEATS):
            for name, *step in STEPS:
                found.setdefault(name, []).append(page.evaluate(MEASURED, step))
                page.wait_for_timeout(150)
        rows += [row(f"{name}, ms", times) for name, times in found.items()]
        every = [value for times in found.values() for value in times]
        rows.append(row("all filters, ms", every))
        browser.close()
    size, load = len(diffin.Scores.open(folder / "scores")), os.getloadavg()[0]
    print(f"{size:,} samples; load of the machine {load:.1f} on {os.cpu_count()} cores")
    print(f"\n| {'what':44} | median | worst |\n|{'-' * 46}|-------:|------:|")
    for name, median, worst in rows:
        print(f"| {name:44} | {median:>6} | {worst:>5} |")


def row(name: str, values: Sequence[float], form: str = ".0f") -> tuple[str, str, str]:
    return name, format(statistics.median(values), form), format(max(values), form)


def imported() -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    return time.perf_counter() - start


def served(folder: Path, problem: diffin.Problem, **options: Any) -> Any:
    given = {
        "run": folder / "run",
        "columns": folder / "columns.parquet",
        "browser": False,
        "block": False,
        "title": "Digits",
    }
    return explore(folder / "scores", problem, **{**given, **options})


def ready(page: Any) -> None:
    script = (
        "document.querySelectorAll('#grid .card img').length >= 4 && !document.querySelector('#grid .card .waiting')"
    )
    while not page.evaluate(script):
        page.wait_for_timeout(20)


def take_pictures(folder: Path, problem: diffin.Problem, into: Path) -> None:
    """The pictures of the documentation: light, dark and narrow."""
    into.mkdir(parents=True, exist_ok=True)
    beside = {"suspects": folder / "suspects", "attribution": folder / "pairs", "decisions": folder / "d.json"}
    with served(folder, problem, columns=None, **beside) as explorer, sync_playwright() as api:
        browser = api.chromium.launch(executable_path=BROWSER, args=FLAGS)
        for name, (width, height), scheme in PICTURES:
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            page.goto(explorer.url)
            ready(page)
            take_picture(page, into / f"explore{name}.png", narrow=width < 500)
            page.close()
        browser.close()
    print(*sorted(into.glob("explore*.png")), sep="\n")


def take_picture(page: Any, path: Path, *, narrow: bool) -> None:
    pause: Callable[[], None] = lambda: page.wait_for_timeout(700)  # noqa: E731
    if not narrow:
        page.keyboard.press("Home")
        if page.locator("#undo").is_disabled():
            page.keyboard.press("r")
            pause()
            page.keyboard.press("d")
            pause()
        page.locator("#grid .card").nth(2).click()
        pause()
    ready(page)
    page.screenshot(path=path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--pictures", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if given.pictures is not None:
            take_pictures(folder, prepare(folder, 1600), given.pictures)
        else:
            measure(folder, prepare(folder, given.samples))


if __name__ == "__main__":
    main()
