"""``diffin attribute``, as a user calls it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

import diffin
from diffin.attribution import Attribution
from diffin.attribution import attribute as attribute_pairs
from diffin.cli.attribute import attribute
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
    inputs, labels = torch.randn(40, 5, generator=generator), torch.randint(3, (40,), generator=generator)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
    train, query = TensorDataset(inputs[:30], labels[:30]), TensorDataset(inputs[30:], labels[30:])
    return diffin.Problem(Classification(model), train, query)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "problem.py").write_text(PROBLEM)
    asked = diffin.load_problem(tmp_path / "problem.py")
    record(tmp_path / "run", asked.task, asked.train)
    return tmp_path


def call(folder: Path, *arguments: str) -> str:
    app = typer.Typer()
    app.command()(attribute)
    done = CliRunner().invoke(
        app, [str(folder / "problem.py"), str(folder / "run"), *arguments, "--quiet"], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    return done.output


def test_every_query_is_asked_about(folder: Path) -> None:
    told = call(folder, "-o", str(folder / "out"), "--top", "4", "-e", "unrolled", "--set", "propagation=segments")
    found = Attribution.open(folder / "out")
    assert found.proponents.shape == (10, 4)
    assert found.metadata["directions"]["metadata"]["estimator"]["propagation"] == "segments"
    assert "30 samples and 10 queries" in told
    assert f"{found.proponents[0, 0]} ({found.proponent_influence[0, 0]:+.1e})" in told
    assert (folder / "out" / "run.yaml").is_file()


def test_one_query_a_class(folder: Path) -> None:
    told = call(folder, "-o", str(folder / "out"), "-e", "tracin", "--per-class", "--matrix")
    found = Attribution.open(folder / "out")
    assert found.queries.tolist() == [0, 1, 2]
    assert found.grouped
    assert sum(len(index) for index, _ in found.matrix()) == 30
    assert "30 samples and 3 classes" in told
    asked = diffin.load_problem(folder / "problem.py")
    labels = asked.query.tensors[1].numpy()
    by_hand = attribute_pairs(
        asked.task, diffin.Trajectory.open(folder / "run"), asked.train, asked.query, estimator=diffin.TracIn(),
        groups=labels, progress=False,
    )  # fmt: skip
    np.testing.assert_array_equal(by_hand.opponents, found.opponents)


def test_without_classes_there_is_none_to_ask_about(folder: Path) -> None:
    source = (folder / "problem.py").read_text().replace("labels[30:]", "labels[30:].double()")
    (folder / "problem.py").write_text(source)
    with pytest.raises(DiffinError, match="not class numbers"):
        call(folder, "-o", str(folder / "out"), "-e", "tracin", "--per-class")
