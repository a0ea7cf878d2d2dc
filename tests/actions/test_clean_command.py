"""``diffin clean``, as a user calls it, on to the decisions of a person."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

import diffin
from diffin.actions.clean import Suspects
from diffin.actions.clean.decisions import FORMAT, KIND
from diffin.cli.clean import clean
from diffin.errors import DiffinError
from training import record

PROBLEM = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

import diffin
from diffin.tasks import Classification

def problem():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (120,), generator=generator)
    inputs = torch.randn(120, 5, generator=generator) + 4 * torch.eye(3, 5)[labels]
    labels[:10] = (labels[:10] + 1) % 3
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 16), nn.GELU(), nn.Linear(16, 3))
    task = Classification(model, class_names=["ant", "bee", "cat"])
    return diffin.Problem(task, TensorDataset(inputs, labels), TensorDataset(inputs[100:], labels[100:]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clean")
    (path / "problem.py").write_text(PROBLEM)
    asked = diffin.load_problem(path / "problem.py")
    record(path / "run", asked.task, asked.train, steps=200, batch_size=16, learning_rate=0.1)
    return path


def call(folder: Path, *arguments: str) -> str:
    app = typer.Typer()
    app.command()(clean)
    done = CliRunner().invoke(
        app, [str(folder / "problem.py"), str(folder / "run"), *arguments, "--quiet"], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    return done.output


def test_suspects_a_review_page_and_what_is_left(folder: Path) -> None:
    output = folder / "suspects"
    said = call(folder, "-o", str(output))
    found = Suspects.open(output)
    assert set(range(10)) <= set(found.suspects().tolist())
    assert len(found.suspects()) < 15
    assert "labels doubted" in said
    assert "bee" in said
    assert "ant" in (output / "review.html").read_text()
    left = pq.read_table(output / "cleaned.parquet")
    np.testing.assert_array_equal(left.column("index").to_numpy(), found.kept())
    assert (output / "run.yaml").is_file()


def test_decisions_are_followed_and_the_suspects_not_computed_again(folder: Path) -> None:
    output = folder / "decided"
    call(folder, "-o", str(output))
    written = (output / "suspects.parquet").stat().st_mtime_ns
    found = Suspects.open(output)
    first, second, third = found.suspects()[:3].tolist()
    given = {int(index): int(label) for index, label in zip(found.index, found.given, strict=True)}
    decisions = [
        {"index": first, "given": given[first], "decision": "relabel", "label": (given[first] + 1) % 3},
        {"index": second, "given": given[second], "decision": "keep"},
        {"index": third, "given": given[third], "decision": "drop"},
    ]
    content = {"kind": KIND, "format": FORMAT, "samples": 120, "decisions": decisions}
    (folder / "decisions.json").write_text(json.dumps(content))
    call(folder, "-o", str(output), "--decisions", str(folder / "decisions.json"))
    left = pq.read_table(output / "cleaned.parquet")
    labels = dict(zip(left.column("index").to_pylist(), left.column("label").to_pylist(), strict=True))
    assert labels[first] == (given[first] + 1) % 3
    assert labels[second] == given[second]
    assert third not in labels
    assert len(labels) == len(found.kept()) + 2
    assert (output / "suspects.parquet").stat().st_mtime_ns == written


def test_mistakes_are_told(folder: Path) -> None:
    with pytest.raises(DiffinError, match="--threshold"):
        call(folder, "-o", str(folder / "other"), "--threshold", "2")
    with pytest.raises(DiffinError, match="no signal 'loss'"):
        call(folder, "-o", str(folder / "other"), "--evidence", "loss")
