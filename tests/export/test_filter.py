"""``diffin filter``: what is kept of scored samples, by position, key and subset file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset
from typer.testing import CliRunner
from written import read_shards, write_shards

import diffin
from diffin.cli.filter import kept
from diffin.cli.main import app
from diffin.errors import DiffinError
from diffin.export import read_subset_file
from diffin.sources import Keyed
from diffin.tasks import Classification
from training import record

COUNT, BROKEN = 60, 7
UIDS = [f"{number * 7919 % 2**61:032x}" for number in range(COUNT)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("filter")
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (COUNT,), generator=generator)
    inputs = torch.randn(COUNT, 5, generator=generator) + 2 * torch.eye(3, 5)[labels]
    torch.manual_seed(0)
    task = Classification(nn.Sequential(nn.Linear(5, 8), nn.GELU(), nn.Linear(8, 3)))
    data = TensorDataset(inputs, labels)
    record(path / "run", task, data, steps=30, batch_size=10, learning_rate=0.1)
    inputs[BROKEN] = torch.nan
    run = diffin.Trajectory.open(path / "run")
    options = {"query": TensorDataset(inputs[40:], labels[40:]), "estimator": diffin.TracIn(), "progress": False}
    diffin.score(task, run, Keyed(data, UIDS), output=path / "keyed", **options)
    diffin.score(task, run, data, output=path / "plain", **options)
    write_shards(path / "shards", labels.tolist())
    return path


def call(*arguments: object) -> str:
    done = CliRunner().invoke(app, ["filter", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_what_helps_most_is_kept_with_its_keys(folder: Path, tmp_path: Path) -> None:
    said = call(folder / "keyed", "--keep", 0.3, "-o", tmp_path, "--subset", tmp_path / "kept.npy")
    table = pq.read_table(tmp_path / "kept.parquet")
    expected = np.sort(diffin.Scores.open(folder / "keyed").most_helpful(18))
    assert table.column("index").to_pylist() == expected.tolist()
    assert table.column("key").to_pylist() == [UIDS[i] for i in expected]
    assert sorted(read_subset_file(tmp_path / "kept.npy")) == sorted(UIDS[i] for i in expected)
    assert "18 of 60 samples kept by influence; 1 have no score" in said.replace("\n", " ")
    assert "command: filter" in (tmp_path / "run.yaml").read_text()


def test_the_samples_themselves_are_written(folder: Path, tmp_path: Path) -> None:
    call(
        folder / "plain",
        "-k",
        0.5,
        "--by",
        "loss",
        "-o",
        tmp_path,
        "--apply",
        tmp_path / "data",
        "--from",
        folder / "shards",
    )
    table = pq.read_table(tmp_path / "kept.parquet")
    losses = diffin.Scores.open(folder / "plain").loss
    assert table.column_names == ["index"]
    assert table.column("index").to_pylist() == np.sort(np.argsort(losses)[:30]).tolist()
    assert len(read_shards(tmp_path / "data")) == 30


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("plain", "--keep", 0), "--keep 0"),
        (("plain", "--keep", 1), "of which 59 have a score"),
        (("plain", "--keep", 0.5, "--subset", "x.npy"), "no ids of their own"),
        (("plain", "--keep", 0.5, "--from", "there"), "are of --apply"),
    ],
)
def test_what_cannot_be_kept_is_said(folder: Path, tmp_path: Path, arguments: tuple[object, ...], words: str) -> None:
    scores, *rest = arguments
    with pytest.raises(DiffinError, match=words):
        CliRunner().invoke(
            app, ["filter", str(folder / str(scores)), *map(str, rest), "-o", str(tmp_path)], catch_exceptions=False
        )


def test_of_equal_values_the_first_are_kept() -> None:
    assert kept(np.array([1.0, 0.0, 1.0, np.nan, 1.0]), 0.6)[0].tolist() == [0, 1, 2]
