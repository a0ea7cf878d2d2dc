"""The pages: every block of Python and of commands runs as it stands, on a problem small enough for all of them."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

import diffin
from diffin.actions.clean.decisions import FORMAT, KIND
from documented import ROOT, Block, blocks

pytest.importorskip("sklearn")

# Pages whose blocks need more than the problem below, and the tests of what they show.
ELSEWHERE = {
    "docs/integrations.md": "integrations/test_integration_docs.py",
    "docs/shards.md": "sources/test_shards_page.py",
    "docs/cluster.md": "scoring/test_engines.py",
    "docs/explore.md": "explore",
}
NEEDS = {
    "docs/tutorials/hugging-face.md": ("transformers", "accelerate", "matplotlib"),
    "docs/tutorials/lightning.md": ("lightning",),
    "docs/tutorials/cluster.md": ("ray",),
}
SLOW = ("tutorials", "cleaning", "deletion", "selection")
"""Folders and pages."""
MOST_NOT_RUN = 8

PROBLEM = """
from itertools import chain, islice, repeat

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

import diffin
from diffin.tasks import Classification

images, labels = load_digits(return_X_y=True)
images, labels = torch.from_numpy(images / 16).float(), torch.from_numpy(labels)
train, query = TensorDataset(images[:220], labels[:220]), TensorDataset(images[220:244], labels[220:244])
STEPS = 44


def build_model():
    return nn.Sequential(nn.Linear(64, 8), nn.GELU(), nn.Linear(8, 10))


def fit(indices, folder, seed):
    torch.manual_seed(seed)
    model = build_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    batches = DataLoader(Subset(diffin.Indexed(train), indices.tolist()), batch_size=20, shuffle=True)
    with diffin.Recorder(
        folder, model, optimizer, dataset_size=len(train), total_steps=STEPS, checkpoints=4
    ) as recorder:
        for inputs, targets, samples in islice(chain.from_iterable(repeat(batches)), STEPS):
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
            recorder.step(samples)
            optimizer.zero_grad()


def problem():
    return diffin.Problem(Classification(build_model()), train, query, show=lambda item: item[0].reshape(8, 8), fit=fit)


if __name__ == "__main__":
    fit(np.arange(len(train)), "runs/digits", seed=0)
"""

# What pages take for granted in Python.
SPACE = """
import torch
from torch import nn
from torch.utils.data import DataLoader

import diffin
from diffin.tasks import Classification, FunctionTask, Regression
from diffin_documented import build_model, fit, query as validation, train

test, any_dataset, train_dataset = validation, train, train
problem = diffin.load_problem("problem.py")
trajectory = diffin.Trajectory.open("runs/a")
scores = diffin.Scores.open("saved/a")
torch.manual_seed(0)
model = build_model()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, 20)
criterion = nn.CrossEntropyLoss()
loader = DataLoader(diffin.Indexed(train), batch_size=20, shuffle=True)
epochs, batches_per_epoch = 2, 4
task = Classification(model)
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every name of the pages is something."""
    folder = tmp_path_factory.mktemp("prepared")
    for name in ("problem.py", "diffin_documented.py", "examples/digits.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(PROBLEM)
    asked = diffin.load_problem(folder / "problem.py")
    assert asked.fit is not None
    for seed, name in enumerate("abc"):
        asked.fit(torch.arange(220).numpy(), folder / "runs" / name, 0 if name == "a" else seed)
    trajectory = diffin.Trajectory.open(folder / "runs" / "a")
    scores = diffin.score(asked.task, trajectory, asked.train, query=asked.query, progress=False)
    scores.save(folder / "saved" / "a")
    decisions = [{"index": 3, "given": int(asked.train[3][1]), "decision": "drop"}]
    content = {"kind": KIND, "format": FORMAT, "samples": 220, "decisions": decisions}
    (folder / "decisions.json").write_text(json.dumps(content))
    (folder / "data" / "train").mkdir(parents=True)
    labels = pa.array(asked.train.tensors[1].numpy())
    pq.write_table(pa.table({"label": labels}), folder / "data" / "train" / "rows.parquet")
    state = asked.task.model.state_dict()
    torch.save(state, folder / "epoch1.pt")
    save_file(state, folder / "epoch2.safetensors")
    return folder


def _documents() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def pages() -> list[Any]:
    names = [
        page
        for page in _documents()
        if page.relative_to(ROOT).as_posix() not in ELSEWHERE and any(block.reason is None for block in blocks(page))
    ]
    slow = pytest.mark.slow
    return [
        pytest.param(
            page, id=str(page.relative_to(ROOT)), marks=[slow] if {page.parent.name, page.stem} & set(SLOW) else []
        )
        for page in names
    ]


def test_little_is_not_run_and_what_is_tested_elsewhere_is() -> None:
    left_out = [block for page in _documents() for block in blocks(page) if block.reason is not None]
    assert len(left_out) <= MOST_NOT_RUN
    assert all((ROOT / "tests" / place).exists() for place in ELSEWHERE.values())


def test_blocks_are_found_as_a_reader_sees_them(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        '```python hl_lines="1"\na = 1\n```\n\n```text\nno\n```\n\n- item\n\n    ```python\n    b = 2\n    ```\n\n'
        '<!-- not run: why -->\n```console\nrm x\n```\n\n```python title="c.py"\nc = 3\n```\n'
    )
    seen = [(block.line, block.text, block.title, block.reason) for block in blocks(page)]
    assert seen == [
        (2, "a = 1\n", "", None),
        (12, "b = 2\n", "", None),
        (17, "rm x\n", "", "why"),
        (21, "c = 3\n", "c.py", None),
    ]


@pytest.mark.parametrize("page", pages())
def test_the_code_of_a_page_runs(page: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in NEEDS.get(page.relative_to(ROOT).as_posix(), ()):
        pytest.importorskip(package)
    folder = tmp_path / "here"
    space: dict[str, Any] = {}
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    imported = set(sys.modules)
    if page.parent.name != "tutorials":
        shutil.copytree(prepared, folder, dirs_exist_ok=True)
        exec(SPACE, space)
    try:
        for block in blocks(page):
            if block.reason is None:
                prepare(block, space)
                block.run(space)
    finally:
        for name in set(sys.modules) - imported:  # A file of this page is not that of the next one.
            if Path(getattr(sys.modules[name], "__file__", None) or ROOT).is_relative_to(folder):
                del sys.modules[name]


def prepare(block: Block, space: dict[str, Any]) -> None:
    """What the reader has, or has not, before this block."""
    if "diffin.Recorder(" in block.text and "resume=" not in block.text:
        shutil.rmtree("runs/a", ignore_errors=True)
    if "recorder.accumulate(" in block.text:
        space["recorder"] = diffin.Recorder(
            "runs/accumulated", space["model"], space["optimizer"], dataset_size=220, total_steps=1, checkpoints=[0]
        )
