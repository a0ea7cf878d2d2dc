"""``diffin delete``."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from deletion_runs import clusters, network, trained
from typer.testing import CliRunner

from diffin.actions.delete import Deletion
from diffin.cli.delete import delete, read_samples
from diffin.errors import DatasetError, DiffinError
from diffin.sources.base import distinct_indices

PROBLEM = """
    import sys
    sys.path.insert(0, {tests!r})
    import diffin
    from deletion_runs import clusters, network
    from diffin.tasks import Classification

    def problem():
        return diffin.Problem(Classification(network()), clusters(60, 0), clusters(40, 9))
"""


def test_a_model_a_certificate_and_a_page_are_written(tmp_path: Path) -> None:
    trained(tmp_path / "run", clusters(60, 0), network(), steps=120)
    problem = tmp_path / "problem.py"
    problem.write_text(textwrap.dedent(PROBLEM.format(tests=str(Path(__file__).parent))))
    (tmp_path / "forget.txt").write_text("3\n17\n20-24\n")
    app = typer.Typer()
    app.command()(delete)
    arguments = [
        problem,
        tmp_path / "run",
        "--samples",
        tmp_path / "forget.txt",
        "-o",
        tmp_path / "out",
        "--retrain",
        "-q",
    ]
    result = CliRunner().invoke(app, [str(a) for a in (*arguments, "--set", "intervals=3", "--shadows", "2")])
    assert result.exit_code == 0, result.output
    assert "is closed" in result.output
    found = Deletion.open(tmp_path / "out")
    assert found.samples.tolist() == [3, 17, 20, 21, 22, 23, 24]
    assert found.certificate.settings["estimator"]["intervals"] == 3
    assert (tmp_path / "out" / "certificate.html").is_file()
    assert "command: delete" in (tmp_path / "out" / "run.yaml").read_text()


def test_samples_are_read_from_text_and_files(tmp_path: Path) -> None:
    np.save(tmp_path / "some.npy", np.array([4, 2]))
    pq.write_table(pa.table({"index": [9, 1], "probability": [0.9, 0.8]}), tmp_path / "some.parquet")
    pq.write_table(pa.table({"row": [9, 1]}), tmp_path / "other.parquet")
    assert read_samples("3,5-7").tolist() == [3, 5, 6, 7]
    assert read_samples(str(tmp_path / "some.parquet")).tolist() == [9, 1]
    with pytest.raises(DiffinError, match="with a column index"):
        read_samples(str(tmp_path / "other.parquet"))
    assert read_samples(str(tmp_path / "some.npy")).tolist() == [4, 2]
    with pytest.raises(DiffinError, match="--samples"):
        read_samples("three")


def test_a_list_longer_than_the_name_of_a_file_is_read() -> None:
    assert read_samples(",".join(map(str, range(500)))).tolist() == list(range(500))


def test_what_holds_no_indices_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.npy").touch()
    for given, words in (
        ("missing.txt", "neither indices"),
        (str(tmp_path / "empty.npy"), "neither indices"),
        (str(tmp_path), "neither indices"),
        ("3,9-5", "9-5: the range holds nothing"),
    ):
        with pytest.raises(DiffinError, match=words):
            read_samples(given)


def test_fractions_are_not_made_indices_of(tmp_path: Path) -> None:
    np.save(tmp_path / "fractions.npy", np.array([0.7, 2.2]))
    with pytest.raises(DatasetError, match="whole numbers"):
        distinct_indices(read_samples(str(tmp_path / "fractions.npy")), 60)


def test_a_file_is_no_folder_for_the_output(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    app = typer.Typer()
    app.command()(delete)
    arguments = ["problem.py", "run", "--samples", "3", "-o", str(tmp_path / "file")]
    with pytest.raises(DiffinError, match="is a file; pass a folder"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_a_deletion_that_a_killed_run_left_gets_its_page(tmp_path: Path) -> None:
    trained(tmp_path / "run", clusters(60, 0), network(), steps=40)
    problem = tmp_path / "problem.py"
    problem.write_text(textwrap.dedent(PROBLEM.format(tests=str(Path(__file__).parent))))
    app = typer.Typer()
    app.command()(delete)
    out = tmp_path / "out"

    def call(*arguments: str, samples: str = "3,17") -> None:
        asked = [str(problem), str(tmp_path / "run"), "--samples", samples, "-o", str(out), "-q", "--force", *arguments]
        done = CliRunner().invoke(app, asked, catch_exceptions=False)
        assert done.exit_code == 0, done.output

    call("--set", "intervals=2")
    model = (out / "model.safetensors").stat().st_mtime_ns
    with pytest.raises(DiffinError, match="holds a deletion already"):
        call("--set", "intervals=2")
    # What a kill between the certificate and its page leaves.
    for name in ("certificate.html", "run.yaml"):
        (out / name).unlink()
    for other, samples in ((("--set", "intervals=3"), "3,17"), (("--set", "intervals=2"), "3,18")):
        with pytest.raises(DiffinError, match="holds another deletion, without its page"):
            call(*other, samples=samples)
    call("--set", "intervals=2")
    assert (out / "certificate.html").exists()
    assert (out / "run.yaml").exists()
    assert (out / "model.safetensors").stat().st_mtime_ns == model
