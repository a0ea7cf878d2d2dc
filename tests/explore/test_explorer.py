"""Starting and ending, in Python and on a command line, and what is refused before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from explored import SAMPLES, Client, Explored

import diffin
from diffin.attribution import Attribution
from diffin.errors import DatasetError, DiffinError, MissingDependencyError, ScoringError
from diffin.explore import Explorer, explore
from diffin.explore.neighbours import Neighbours

Serve = Callable[..., Explorer]


def test_it_serves_until_it_is_closed(explored: Explored, serve: Serve) -> None:
    with serve(explored.scores, explored.problem) as explorer:
        assert urllib.request.urlopen(explorer.url, timeout=5).status == 200
        assert explorer.url in repr(explorer)
        assert "noreferrer" in explorer._repr_html_()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(explorer.url, timeout=2)
    explorer.close()
    assert "closed" in repr(explorer)


def test_two_can_be_served_at_once(explored: Explored, serve: Serve, tmp_path: Path) -> None:
    one, other = (Client(serve(explored.scores, decisions=tmp_path / name)) for name in ("one.json", "other.json"))
    one.post("/api/mark", {"rows": [1], "verdict": "drop"})
    assert other.get("/api/about")["counts"]["drop"] == 0
    assert one.raw("GET", "/api/about", headers={"Cookie": other.cookie})[0] == 403


def test_decisions_go_into_the_folder_of_the_scores(explored: Explored, serve: Serve) -> None:
    with serve(explored.scores, decisions=None) as explorer:
        assert explorer.marks.path == explored.folder / "scores" / "decisions.json"
        before = set(explored.folder.rglob("*"))
        Client(explorer).view()
        assert set(explored.folder.rglob("*")) == before


def test_scores_in_memory_keep_decisions_in_memory(explored: Explored, serve: Serve) -> None:
    scores = diffin.score(
        explored.problem.task, diffin.Trajectory.open(explored.folder / "run"), explored.problem.train,
        query=explored.problem.query, estimator=diffin.TracIn(), progress=False,
    )  # fmt: skip
    explorer = serve(scores, decisions=None)
    client = Client(explorer)
    client.post("/api/mark", {"rows": [1], "verdict": "drop"})
    assert client.get("/api/about")["decisions"] is None
    np.testing.assert_allclose(client.get("/api/sample/3")["terms"], scores.terms[3], rtol=1e-6)
    assert explorer.marks.chosen().index.tolist() == [row for row in range(SAMPLES) if row != 1]


def test_neighbours_from_the_lists_alone_are_those_of_the_matrix(explored: Explored, tmp_path: Path) -> None:
    found = explored.attribution
    matrix = np.concatenate([part for _, part in found.matrix()]).astype(np.float64)
    listed = Neighbours(Attribution(found._tops, found._manifest, None))
    assert Neighbours(found).complete
    assert not listed.complete
    for row in range(SAMPLES):
        near = listed.sample(row, most=99)
        on = [
            (found.proponents[place] == row).any() or (found.opponents[place] == row).any()
            for place in range(len(found))
        ]
        assert {place for place, _, _ in near["helped"]} == {p for p in np.flatnonzero(on) if matrix[row, p] < 0}
        assert {place for place, _, _ in near["harmed"]} == {p for p in np.flatnonzero(on) if matrix[row, p] > 0}
        for place, query, influence in near["helped"] + near["harmed"]:
            assert query == found.queries[place]
            assert influence == pytest.approx(matrix[row, place], rel=1e-5)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"scores": "absent"}, ScoringError, "absent"),
        ({"suspects": "absent"}, ScoringError, "no suspects"),
        ({"attribution": "absent"}, ScoringError, "no attribution"),
        ({"columns": "absent"}, DatasetError, "no such file"),
        ({"run": "absent", "problem": None}, DiffinError, "pass the problem"),
        ({"port": 70000}, DiffinError, "port=70000"),
    ],
    ids=str,
)
def test_what_cannot_be_explored_is_refused(
    explored: Explored, options: dict[str, Any], error: type[Exception], words: str, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"scores": explored.scores, "problem": explored.problem, "decisions": tmp_path / "d.json"}
    with pytest.raises(error, match=words):
        explore(**{**given, **options}, browser=False, block=False)


def test_suspects_and_attributions_of_other_samples_are_refused(explored: Explored, tmp_path: Path) -> None:
    few = torch.utils.data.TensorDataset(*(tensor[:100] for tensor in explored.problem.train.tensors))
    scores = diffin.score(
        explored.problem.task, diffin.Trajectory.open(explored.folder / "run"), few, query=explored.problem.query,
        estimator=diffin.TracIn(), progress=False,
    )  # fmt: skip
    for options in ({"suspects": explored.suspects}, {"attribution": explored.attribution}):
        with pytest.raises(DatasetError, match=f"about {SAMPLES} samples, and the scores about 100"):
            explore(scores, **options, browser=False, block=False)  # type: ignore[arg-type]


def test_a_port_that_is_taken_is_refused(explored: Explored, serve: Serve) -> None:
    port = int(serve(explored.scores).url.partition("/?")[0].rpartition(":")[2])
    with pytest.raises(DiffinError, match=f"port={port} cannot be listened on"):
        explore(explored.scores, port=port, browser=False, block=False)


def test_without_the_extra_it_is_said_how_to_install_it(explored: Explored, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "diffin\[explore\]"'):
        explore(explored.scores, browser=False, block=False)


PROBLEM = """
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset
import diffin
from diffin.tasks import Classification
def problem():
    pictures, labels = load_digits(return_X_y=True)
    images, classes = torch.from_numpy(pictures / 16).float().reshape(-1, 1, 8, 8), torch.from_numpy(labels)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10))
    return diffin.Problem(Classification(model), TensorDataset(images[:240], classes[:240]))
"""
COMMAND = "import typer; from diffin.cli.explore import explore; typer.run(explore)"


def test_the_command_serves_until_it_is_interrupted(explored: Explored, tmp_path: Path) -> None:
    (tmp_path / "problem.py").write_text(PROBLEM)
    folder = explored.folder
    given = [folder / "scores", "--problem", "problem.py", "--run", folder / "run", "--suspects", folder / "suspects"]
    given += ["--attribution", folder / "pairs", "--decisions", "decided.json", "--no-browser"]
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, *map(str, given)], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "NO_COLOR": "1", "COLUMNS": "200"},
        # Tests that run in the background of a shell are deaf to it, and so would be what they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stdout is not None
    line = process.stdout.readline()
    explorer = type("Address", (), {"url": line.split()[-1]})()
    client = Client(explorer)
    client.post("/api/mark", {"rows": [3, 4], "verdict": "drop"})
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert "0 kept, 2 to drop, 0 to relabel -> decided.json" in out
    assert client.token not in err
    assert (tmp_path / "decided.json").exists()
