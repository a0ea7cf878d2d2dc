"""What the command line says of a mistake: in its own words, whichever function found it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import diffin
from command_line import run_here
from diffin.cli.wording import as_options

PROBLEM = """
import sys
sys.path.insert(0, {folder!r})
from pools import Fit, pool, task

import diffin

def problem():
    train, query, _ = pool()
    return diffin.Problem(task(), train, {query}, fit={fit})
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("messages")
    pools = str(Path(__file__).parent / "select")
    for name, query, fit in (("problem", "query", "Fit(train)"), ("alone", None, None)):
        (path / f"{name}.py").write_text(PROBLEM.format(folder=pools, query=query, fit=fit))
    asked = diffin.load_problem(path / "problem.py")
    assert asked.fit is not None
    asked.fit(np.arange(120), path / "run", 0)
    return path


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("select problem.py run -o x", "RUN: --method iterated goes by no training but those on subsets"),
        ("select problem.py -o x -f 2", "--fractions 2: pass shares above 0 and at most 1, e.g. 0.1,0.3"),
        ("select problem.py -o x --rounds 1", "--rounds 1: pass 2 or more"),
        ("select problem.py -o x --seed -1", "--seed -1: pass 0 or more"),
        ("select problem.py -o x -e unrolled --set rank=0", "--set rank=0"),
        ("select alone.py -o x", "--method iterated trains on subsets: give the Problem fit= a function"),
        (
            "select alone.py -o x -m aum",
            "pass the folder of a recorded training as RUN, or give the Problem fit= a function",
        ),
        (
            "select alone.py run -o x -m influence",
            "the problem has no query, and --method influence asks about a query",
        ),
        (
            "select problem.py -o x --cut 0.2 -m aum",
            "--cut 0.2 is of stratified and ccs; leave it out for --method aum",
        ),
        ("select problem.py run -o x -m ccs --cut 2", "--cut 2.0: pass the share"),
        (
            "clean problem.py run -o x --evidence loss",
            "--evidence: no signal 'loss' is computed; pass some of mean_loss, ",
        ),
        ("clean problem.py run -o x --evidence gradient_norm", "(others need --self-influence), or leave it out"),
        ("delete problem.py run -o x --samples 1,1", "--samples: an index comes twice"),
        ("delete problem.py run -o x --samples 1 --shadows -1", "--shadows -1, --recovery-steps 0: pass 0 or more"),
        ("delete alone.py run -o x --samples 1 --shadows 8", "give the Problem query=, or --shadows 0"),
        ("delete problem.py run -o x --samples 1 --set intervals=0", "error: --set intervals=0: pass 1 or more"),
    ],
)
def test_mistakes_are_told_in_options(
    command: str, said: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_here(*command.split(), "-q", cwd=folder, monkeypatch=monkeypatch) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert said in told
    assert not any(word in told for word in ("query=None", "method=", "trajectory=", "Iterated(", "Linearised("))


@pytest.mark.parametrize(
    ("python", "shell"),
    [
        (
            "or pass estimator=Linearised(intervals=20, curvature_samples=None); force=True returns the model",
            "or pass --set intervals=20 --set curvature_samples=none; --force writes the model",
        ),
        (
            "pass hessian='exact', or estimator=diffin.Unrolled(propagation='segments'), which",
            "pass --set hessian=exact, or --estimator unrolled --set propagation=segments, which",
        ),
        ("class_balanced=True: no classes; pass class_balanced=None", "--balanced: no classes; leave it out"),
        ("pass Iterated(trust=False), or look", "pass --no-trust, or look"),
        ("query=None: pass the samples", "the problem has no query: give it the samples"),
        ("--set a=1: the settings are solver=cg, seed=0", "--set a=1: the settings are solver=cg, seed=0"),
        ("carried back at rank=3, it grew", "carried back at rank=3, it grew"),
        ("Trajectory(total_steps=3, checkpoints=[1])", "Trajectory(total_steps=3, checkpoints=[1])"),
        ("use diffin.score(derivatives='forward')", "use diffin.score(derivatives='forward')"),
        ("pass an instance, e.g. diffin.Unrolled()", "pass an instance, e.g. diffin.Unrolled()"),
    ],
)
def test_python_is_translated_where_there_is_an_option_and_left_alone_elsewhere(python: str, shell: str) -> None:
    assert as_options(python) == shell
