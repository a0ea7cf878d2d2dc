"""``diffin select``, as a user calls it."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from diffin.actions.select import Selection
from diffin.cli.select import select
from diffin.errors import DiffinError

PROBLEM = """
import sys
sys.path.insert(0, {folder!r})
from pools import Fit, pool, task

import diffin

def problem():
    train, query, _ = pool()
    return diffin.Problem(task(), train, query, fit=Fit(train, steps=8))
"""


@pytest.fixture
def problem(tmp_path: Path) -> Path:
    path = tmp_path / "problem.py"
    path.write_text(PROBLEM.format(folder=str(Path(__file__).parent)))
    return path


def call(*arguments: object) -> str:
    app = typer.Typer()
    app.command()(select)
    done = CliRunner().invoke(app, [*map(str, arguments), "--quiet"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_iterating(problem: Path, tmp_path: Path) -> None:
    told = call(problem, "-o", tmp_path / "kept", "--fractions", "0.2,0.4", "--rounds", 2)
    assert Selection.open(tmp_path / "kept").fractions == (0.2, 0.4)
    table = pq.read_table(tmp_path / "kept" / "selection.parquet")
    assert table.column_names == ["index", "weight_0.2", "weight_0.4"]
    assert table.num_rows - table.column("weight_0.2").null_count == 24
    assert "4 trainings" in told
    assert (tmp_path / "kept" / "run.yaml").is_file()


def test_by_a_recorded_training(problem: Path, tmp_path: Path) -> None:
    import diffin

    asked = diffin.load_problem(problem)
    assert asked.fit is not None
    import numpy as np

    asked.fit(np.arange(120), tmp_path / "run", 0)
    told = call(problem, tmp_path / "run", "-o", tmp_path / "kept", "-m", "ccs", "-f", "0.5", "--unbalanced")
    assert "60" in told
    assert Selection.open(tmp_path / "kept").method == "ccs"


def test_mistakes_are_sentences(problem: Path, tmp_path: Path) -> None:
    with pytest.raises(DiffinError, match="shares with commas"):
        call(problem, "-o", tmp_path / "a", "-f", "a third")
    with pytest.raises(DiffinError, match="are of --method iterated"):
        call(problem, "-o", tmp_path / "a", "-m", "ccs", "--rounds", 3)
    with pytest.raises(DiffinError, match="are of --method iterated"):
        call(problem, "-o", tmp_path / "a", "-m", "ccs", "--no-trust")


def test_a_run_is_refused_where_it_would_not_be_used(problem: Path, tmp_path: Path) -> None:
    import numpy as np

    import diffin

    asked = diffin.load_problem(problem)
    asked.fit(np.arange(120), tmp_path / "run", 0)
    with pytest.raises(DiffinError, match="goes by no training but those on subsets"):
        call(problem, tmp_path / "run", "-o", tmp_path / "a", "--rounds", 2)
    assert not (tmp_path / "a").exists()
    assert "1 share by random" in call(problem, tmp_path / "run", "-o", tmp_path / "a", "-m", "random", "-f", "0.2")


def test_without_a_query_the_table_says_what_judged(problem: Path, tmp_path: Path) -> None:
    problem.write_text(problem.read_text().replace("train, query, fit", "train, None, fit"))
    told = call(problem, "-o", tmp_path / "kept", "--fractions", "0.2", "--rounds", 2, "--no-trust")
    assert "loss on the training set" in told
    assert "held-out" not in told


def test_the_help_teaches() -> None:
    told = call("--help").replace("\n", " ")
    for word in ("Example", "fit(indices", "--fractions", "k-center", "Not for iterated", "--no-trust"):
        assert word in told
