"""Repeating a command from the file that it left: the same bytes, and a word about whatever is not as it was."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
import yaml
from typer.testing import CliRunner

import diffin
from diffin.cli.main import app
from diffin.cli.rerun import command_line, compare, rerun
from diffin.errors import DiffinError
from diffin.provenance import digests, read_run_file, write_run_file
from test_cli import PROBLEM
from training import record

if not any(command.callback is rerun for command in app.registered_commands):
    app.command()(rerun)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prepared")
    (path / "problem.py").write_text(PROBLEM)
    asked = diffin.load_problem(path / "problem.py")
    record(path / "run", asked.task, asked.train, steps=40, batch_size=16, learning_rate=0.5)
    return path


@pytest.fixture
def folder(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A problem beside a recorded run, and the working folder."""
    shutil.copytree(prepared, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def call(*arguments: object, code: int = 0) -> Any:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == code, done.output
    return done


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.suffix in (".parquet", ".safetensors")
    }


def test_the_same_scores_to_the_byte_from_any_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = (
        "-e",
        "diffin",
        "--set",
        "batch_size=32",
        "--set",
        "batches=2",
        "--seed",
        "3",
        "-p",
        "0.*",
        "-d",
        "forward",
    )
    call("score", "problem.py", "run", "-o", "scores", *asked, "--no-report", "-q")
    elsewhere = folder.parent / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    done = call("rerun", folder / "scores" / "run.yaml", "-o", "again")
    assert bytes_of(elsewhere / "again") == bytes_of(folder / "scores")
    assert len(bytes_of(elsewhere / "again")) > 1
    assert "the same byte by byte" in done.output
    assert "Other than then" not in done.output
    assert Path.cwd() == elsewhere
    assert not (elsewhere / "again" / "report.html").exists()
    then, now = (read_run_file(path) for path in (folder / "scores", elsewhere / "again"))
    assert {**now.arguments, "output": "scores"} == then.arguments
    assert now.inputs == then.inputs


def test_by_default_it_lies_beside_the_old_output(folder: Path) -> None:
    call("score", "problem.py", "run", "-o", "scores", "-e", "tracin", "-q")
    call("rerun", "scores")
    assert bytes_of(folder / "scores-rerun") == bytes_of(folder / "scores")
    with pytest.raises(DiffinError, match="the output to compare with"):
        call("rerun", "scores", "-o", "scores")


def test_what_is_different_is_told_and_so_is_what_comes_of_it(folder: Path) -> None:
    call("score", "problem.py", "run", "-o", "scores", "-e", "tracin", "-q")
    written = yaml.safe_load(Path("scores/run.yaml").read_text())
    written["environment"]["packages"]["torch"] = "1.0"
    written["environment"]["git"] = "abc"
    Path("scores/run.yaml").write_text(yaml.safe_dump(written))
    problem = Path("problem.py").read_text()
    Path("problem.py").write_text(
        problem.replace("images[120:160], labels[120:160]", "images[130:160], labels[130:160]")
    )
    done = call("rerun", "scores", code=1)
    assert "torch: 1.0 then, " in done.output
    assert "git: abc then, none now" in done.output
    assert "problem.py has other contents" in done.output
    assert "part-00000.parquet" in done.output
    assert "of results differ" in done.output
    assert not np.array_equal(
        diffin.Scores.open("scores").influence, diffin.Scores.open("scores-rerun").influence, equal_nan=True
    )
    Path("problem.py").unlink()
    with pytest.raises(diffin.DiffinError, match=r"no file problem\.py"):
        call("rerun", "scores", "-o", "third")


def test_a_recorded_run_that_was_replaced_is_noticed(folder: Path) -> None:
    call("score", "problem.py", "run", "-o", "scores", "-e", "tracin", "-q")
    shutil.rmtree("run")
    asked = diffin.load_problem("problem.py")
    record(Path("run"), asked.task, asked.train, steps=50, batch_size=16)
    assert "run has other contents" in call("rerun", "scores", code=1).output


def test_other_commands_and_what_they_wrote_elsewhere(folder: Path) -> None:
    asked = diffin.load_problem("problem.py")
    labels = asked.train.tensors[1].tolist()
    Path("data").mkdir()
    pq.write_table(pa.table({"label": labels}), "data/rows.parquet")
    call("clean", "problem.py", "run", "-o", "suspects", "--apply", "cleaned", "--from", "data", "-q")
    left = Path("cleaned/rows.parquet").stat().st_mtime_ns
    call("rerun", "suspects")
    assert bytes_of(folder / "suspects-rerun") == bytes_of(folder / "suspects")
    assert Path("cleaned/rows.parquet").stat().st_mtime_ns == left
    call("score", "problem.py", "run", "-o", "scores", "-e", "tracin", "-q")
    call("filter", "scores", "-o", "kept", "--keep", "0.25")
    assert "1 files of results, the same" in call("rerun", "kept").output


def test_arguments_are_typed_as_the_command_takes_them() -> None:
    command = typer.main.get_command(app).commands["select"]
    given = {
        "problem": "p.py", "output": "old", "run": None, "fractions": "0.1,0.2", "estimator_settings": ["rank=3", "-x=1"],
        "balanced": False, "cut": -1.5, "resume": False, "quiet": False, "apply": "kept", "source": ["data"],
    }  # fmt: skip
    typed = command_line(command.params, given, "new")
    assert typed == [
        "--output=new", "--fractions=0.1,0.2", "--set=rank=3", "--set=-x=1", "--unbalanced", "--cut=-1.5", "--no-resume",
        "--", "p.py",
    ]  # fmt: skip
    context = command.make_context("select", typed)
    read = {**context.params, "estimator_settings": list(context.params["estimator_settings"])}
    kept = {name: value for name, value in given.items() if name not in ("output", "apply", "source")}
    assert {name: str(read[name]) if name == "problem" else read[name] for name in kept} == kept


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "there is no"),
        ("[1, 2]", "not what a command"),
        ("command: score", "not what a command"),
        ("{command: 3, arguments: {}, folder: .}", "not what a command"),
        (": :", "not what a command"),
        ("{command: bake, arguments: {}, folder: .}", "`diffin bake`, which this version does not have"),
        ("{command: score, arguments: {flavour: sweet}, folder: .}", "no argument 'flavour'"),
        ("{command: score, arguments: {}, folder: /nowhere}", "--folder"),
    ],
)
def test_other_files_are_refused(content: str | None, said: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "run.yaml").write_text(content)
    with pytest.raises(DiffinError, match=said):
        call("rerun", tmp_path / "run.yaml")


def test_a_file_from_before_the_digests_is_read(folder: Path) -> None:
    call("score", "problem.py", "run", "-o", "scores", "-e", "tracin", "-q")
    written = yaml.safe_load(Path("scores/run.yaml").read_text())
    del written["inputs"]
    Path("scores/run.yaml").write_text(yaml.safe_dump(written))
    assert "the same byte by byte" in call("rerun", "scores").output


def test_digests_are_of_files_and_of_recorded_runs(folder: Path) -> None:
    found = digests(
        {"problem": "problem.py", "run": ["run", "absent"], "output": "run", "samples": "1," * 5000, "x": 3}
    )
    assert sorted(found) == ["problem.py", "run"]
    write_run_file(
        folder / "out", "score", {"problem": Path("problem.py"), "run": (Path("run"),), "output": Path("out")}
    )
    assert read_run_file(folder / "out").inputs == found


def test_results_are_compared_by_their_bytes(tmp_path: Path) -> None:
    for name, content in (("old/a.parquet", b"1"), ("old/b/c.safetensors", b"2"), ("old/d.parquet", b"3"),
                          ("new/a.parquet", b"1"), ("new/b/c.safetensors", b"x"), ("new/e.parquet", b"4"),
                          ("old/report.html", b"5"), ("new/report.html", b"6")):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    same, differing = compare(tmp_path / "old", tmp_path / "new")
    assert same == ["a.parquet"]
    assert differing == ["b/c.safetensors", "d.parquet", "e.parquet"]
    assert compare(tmp_path / "nothing", tmp_path / "new") == ([], [])
