"""``diffin score --engine ...``, run as a user runs it."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils.data import TensorDataset

import diffin
from command_line import run_here
from training import record

PROBLEM = """
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

import diffin
from diffin.errors import UnreadableError
from diffin.sources import Keyed
from diffin.tasks import Classification

torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
inputs, labels = torch.randn(50, 4, generator=generator), torch.randint(0, 3, (50,), generator=generator)
train, query = TensorDataset(inputs[:40], labels[:40]), TensorDataset(inputs[40:], labels[40:])
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 3))


class Damaged(Dataset):
    def __len__(self):
        return len(train)

    def __getitem__(self, index):
        if index in (8, 33):
            raise UnreadableError(f"shard-{index}.tar ends early")
        return train[index]


def problem():
    return diffin.Problem(Classification(model), %s, query)
"""

ASKED = ("-e", "tracin", "--no-report", "--batch-size", "8")


def run(*arguments: object, cwd: Path, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *launcher, "-m", "diffin", "score", *map(str, arguments), *ASKED]
    environment = {**os.environ, "COLUMNS": "160", "OMP_NUM_THREADS": "1", "TERM": "dumb", "NO_COLOR": "1"}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(cwd / "token")}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=200, env=environment, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli")
    (path / "problem.py").write_text(PROBLEM % "train")
    (path / "damaged.py").write_text(PROBLEM % "Keyed(Damaged(), [f'sample-{i}' for i in range(40)])")
    (path / "token").write_text(secrets.token_hex(32))
    (path / "token").chmod(0o600)
    asked = diffin.load_problem(path / "problem.py")
    assert isinstance(asked.train, TensorDataset)
    record(path / "run", asked.task, asked.train, steps=20, batch_size=8)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("*.parquet")}


def test_torchrun_scores_together_and_one_process_speaks(folder):
    alone = run("problem.py", "run", "-o", "alone", cwd=folder)
    assert alone.returncode == 0, alone.stderr
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node=2")
    done = run("problem.py", "run", "-o", "ranks", "--engine", "torchrun", cwd=folder, launcher=launcher)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("40 samples scored") == 1
    one, two = (diffin.Scores.open(folder / name) for name in ("alone", "ranks"))
    # The probes were added up in another order.
    assert abs(one.influence - two.influence).max() < 1e-5 * abs(one.influence).max()


def test_samples_that_cannot_be_read_are_counted_and_the_code_is_3(folder):
    done = run("damaged.py", "run", "-o", "damaged", cwd=folder)
    assert done.returncode == 3, done.stderr
    assert "2 samples could not be read" in done.stdout
    assert "(sample 8: shard-8.tar ends early)" in done.stdout
    assert "Scores.open(...).failures" in done.stdout
    scores = diffin.Scores.open(folder / "damaged")
    assert scores.failures == {8: "shard-8.tar ends early", 33: "shard-33.tar ends early"}
    assert scores.failed.tolist() == [8, 33]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--engine", "torchrun"), "was not started by torchrun"),
        (("--ray", "workers=2"), "pass --engine ray, too"),
        (
            ("--engine", "ray", "--ray", "actors=2"),
            "the settings are workers, cpus_per_worker, gpus_per_worker, address",
        ),
        (("--engine", "ray", "--ray", "workers=two"), "pass a whole number"),
        (("--engine", "ray", "--ray", "workers=0"), "pass 1 or more"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_one_sentence(folder, arguments, said, monkeypatch, capsys):
    code = run_here(
        "score", "problem.py", "run", "-o", "refused", *ASKED, *arguments, cwd=folder, monkeypatch=monkeypatch
    )
    told = capsys.readouterr().err
    assert code == 2
    assert said in " ".join(told.split())
    assert "Traceback" not in told


def test_quiet_is_heard_where_no_argument_reaches(folder, monkeypatch, capsys):
    # As of a dataset that makes an index when it is first asked for a sample.
    shows = "    from diffin.progress import phase\n    with phase('indexing', 1, show=True) as bar:\n        bar.advance()\n"
    (folder / "indexing.py").write_text((PROBLEM % "train").replace("def problem():\n", f"def problem():\n{shows}"))
    for quiet in ("--quiet", "--no-resume"):
        run_here("score", "indexing.py", "run", "-o", "q", *ASKED, quiet, cwd=folder, monkeypatch=monkeypatch)
        told = capsys.readouterr().err
        assert ("indexing" in told, "scoring" in told) == ((quiet != "--quiet"),) * 2


@pytest.mark.slow
def test_ray_workers_load_the_problem_file(folder):
    pytest.importorskip("ray")
    alone = run("problem.py", "run", "-o", "again", cwd=folder)
    assert alone.returncode == 0, alone.stderr
    settings = ("--ray", "workers=1", "--ray", "address=local")
    done = run("problem.py", "run", "-o", "by-ray", "--engine", "ray", *settings, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert contents(folder / "by-ray") == contents(folder / "again")
