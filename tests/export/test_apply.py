"""``diffin clean --apply`` and ``diffin select --apply``, as a user calls them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner
from written import NAMES, read_images, read_shards, write_images, write_shards

import diffin
from diffin.actions.clean import Suspects
from diffin.actions.clean.decisions import FORMAT, KIND
from diffin.actions.select import Selection
from diffin.cli.clean import clean
from diffin.cli.select import select
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
    labels = torch.randint(3, (90,), generator=generator).sort().values
    inputs = torch.randn(90, 5, generator=generator) + 4 * torch.eye(3, 5)[labels.roll(3)]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 16), nn.GELU(), nn.Linear(16, 3))
    task = Classification(model, class_names=["ant", "bee", "cat"])
    return diffin.Problem(task, TensorDataset(inputs, labels), TensorDataset(inputs[80:], labels[80:]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("apply")
    (path / "problem.py").write_text(PROBLEM)
    asked = diffin.load_problem(path / "problem.py")
    record(path / "run", asked.task, asked.train, steps=150, batch_size=16, learning_rate=0.1)
    write_images(path / "images", asked.train.tensors[1].tolist())
    write_shards(path / "shards", asked.train.tensors[1].tolist())
    return path


def call(command: Callable[..., None], folder: Path, *arguments: object) -> str:
    app = typer.Typer()
    app.command()(command)
    given = [str(folder / "problem.py"), str(folder / "run"), *map(str, arguments), "--quiet"]
    done = CliRunner().invoke(app, given, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_what_is_left_after_a_review_is_written(folder: Path) -> None:
    output = folder / "suspects"
    call(clean, folder, "-o", output)
    found = Suspects.open(output)
    first, second = found.suspects()[:2].tolist()
    written = (output / "suspects.parquet").stat().st_mtime_ns
    given = found.given.tolist()
    new = (given[first] + 1) % 3
    decisions = [
        {"index": first, "given": given[first], "decision": "relabel", "label": new},
        {"index": second, "given": given[second], "decision": "keep"},
    ]
    content = {"kind": KIND, "format": FORMAT, "samples": 90, "decisions": decisions}
    (folder / "decisions.json").write_text(json.dumps(content))
    expected = {int(index): NAMES[given[index]] for index in found.kept()}
    expected |= {first: NAMES[new], second: NAMES[given[second]]}
    decided = ("-o", output, "--decisions", folder / "decisions.json")
    said = call(clean, folder, *decided, "--apply", folder / "clean-images", "--from", folder / "images")
    assert f"{len(expected)} samples, 1 relabelled" in said
    assert dict(read_images(folder / "clean-images")) == expected
    call(clean, folder, *decided, "--apply", folder / "clean-shards", "--from", folder / "shards")
    assert read_shards(folder / "clean-shards") == sorted(expected.items())
    assert (output / "suspects.parquet").stat().st_mtime_ns == written


def test_without_decisions_the_suspects_are_left_out(folder: Path) -> None:
    output = folder / "alone"
    call(clean, folder, "-o", output, "--apply", folder / "left", "--from", folder / "images", "--hard-link")
    kept = Suspects.open(output).kept()
    assert [number for number, _ in read_images(folder / "left")] == kept.tolist()
    assert (output / "review.html").is_file()


@pytest.mark.parametrize("shares", ["0.2", "0.2,0.5"])
def test_what_is_selected_is_written(shares: str, folder: Path) -> None:
    output, destination = folder / f"kept-{shares}", folder / f"selected-{shares}"
    arguments = ("-o", output, "-m", "el2n", "-f", shares, "--apply", destination, "--from", folder / "images")
    said = call(select, folder, *arguments)
    assert "The samples themselves" in said
    selection = Selection.open(output)
    for kept in selection.kept:
        where = destination / f"{kept.fraction:g}" if len(selection) > 1 else destination
        assert [number for number, _ in read_images(where)] == kept.indices.tolist()


def test_mistakes_are_told_before_anything_is_computed(folder: Path) -> None:
    output = folder / "nothing"
    for command in (clean, select):
        with pytest.raises(DiffinError, match="say with --from"):
            call(command, folder, "-o", output, "--apply", folder / "out")
        with pytest.raises(DiffinError, match="are of --apply"):
            call(command, folder, "-o", output, "--from", folder / "images")
        with pytest.raises(DiffinError, match="is not empty"):
            call(command, folder, "-o", output, "--from", folder / "images", "--apply", folder / "run")
        write_images(folder / "fewer", np.zeros(5, dtype=int).tolist())
        with pytest.raises(DiffinError, match="holds 5 samples, and not the 90"):
            call(command, folder, "-o", output, "--from", folder / "fewer", "--apply", folder / "out")
    assert not output.exists()
    assert not (folder / "out").exists()


@pytest.mark.parametrize("command", [clean, select])
def test_the_help_says_how(command: Callable[..., None]) -> None:
    app = typer.Typer()
    app.command()(command)
    told = CliRunner().invoke(app, ["--help"], terminal_width=200).output
    for word in ("--apply", "--from", "--label-column", "--hard-link", "WebDataset"):
        assert word in told
