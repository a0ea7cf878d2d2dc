"""Whoever measures, the scores are the same, to the byte."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from scoring_of_ranks import COUNT, OPTIONS, Made
from torch.utils.data import IterableDataset

from diffin import Replay, score
from diffin.errors import DiffinError, MissingDependencyError, ScoringError
from diffin.scoring import Ray, Torchrun, score_probes
from diffin.scoring.engines.base import handed_out, write_parts
from diffin.scoring.measuring import Measuring
from diffin.scoring.plan import Settings, go_on
from diffin.scoring.sink import FolderParts
from diffin.sources import open_source
from training import record

SCRIPT = Path(__file__).with_name("scoring_of_ranks.py")


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def torchrun(*arguments: object, processes: int = 2) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)


@pytest.fixture
def local(task, probes, tmp_path) -> Path:
    return score_probes(task, probes, Made(), output=tmp_path / "local", **OPTIONS).path


def test_torchrun_writes_the_bytes_of_one_process_and_a_failure_is_that_of_all(task, probes, local, tmp_path):
    output = tmp_path / "ranks"
    # A run that had lost parts of its work.
    before = score_probes(task, probes, Made(), output=output / "whole", **OPTIONS)
    for number in (0, 2, 3, 4, 8):
        (before.path / f"part-{number:05d}.parquet").unlink()
    done = torchrun(SCRIPT, output, probes.path, "whole", "damaged", "slow", "other")
    assert done.returncode == 0, done.stderr
    for case in ("whole", "slow"):
        assert contents(output / case) == contents(local)
        said = [(output / f"{case}-{rank}.txt").read_text() for rank in (0, 1)]
        assert said == [f"{COUNT} rows summing to {before.influence.sum():.12e}"] * 2
    own = (output / "damaged-1.txt").read_text()
    assert own.startswith("OSError: picture ")
    assert (output / "damaged-0.txt").read_text() == f"RankError: rank 1 of 2 failed with {own}"
    assert (
        (output / "other-1.txt")
        .read_text()
        .startswith("ScoringError: the dataset of this process is not that of rank 0")
    )
    assert "is not that of rank 0" in (output / "other-0.txt").read_text()


PROBLEM = """
import diffin, scoring_of_ranks

def problem():
    return diffin.Problem(scoring_of_ranks.task(), scoring_of_ranks.Made())
"""


@pytest.mark.slow
def test_ray_writes_the_bytes_of_one_process_whether_it_is_sent_the_data_or_loads_a_problem_file(
    probes, local, tmp_path
):
    pytest.importorskip("ray")
    (tmp_path / "problem.py").write_text(PROBLEM)
    token = tmp_path / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    output = tmp_path / "ray"
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token),
        "PYTHONPATH": str(SCRIPT.parent),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, str(SCRIPT.with_name("scoring_by_ray.py")), str(output), probes.path, tmp_path / "problem.py"],
        capture_output=True, text=True, timeout=400, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])  # Ray may have spoken before
    message, *notes = seen["damaged"]
    assert message.startswith("picture ")
    assert any("on node" in note for note in notes)
    assert any("was reading sample" in note for note in notes)
    assert seen["rows"] == COUNT
    assert contents(output / "sent") == contents(local)
    after = {file.name: file.stat().st_mtime_ns for file in (output / "sent").iterdir()}
    assert seen["there"].items() <= after.items(), "a finished part was written again"
    assert "cannot be sent to another process" in seen["unsendable"]
    assert "Ray(problem='problem.py')" in seen["unsendable"]
    assert contents(output / "loaded") == contents(local)
    assert seen["as before"]


@pytest.mark.parametrize("workers", [1, 2, 7])
@pytest.mark.parametrize("missing", [[(0, 37)], [(0, 8), (20, 24), (36, 37)], [(4, 37)]], ids=str)
def test_every_missing_position_is_handed_out_once_and_the_last_parts_one_by_one(missing, workers):
    ranges = handed_out(missing, 4, workers)
    positions = [position for start, stop in ranges for position in range(start, stop)]
    assert positions == [position for start, stop in missing for position in range(start, stop)]
    assert all(start % 4 == 0 and (stop % 4 == 0 or stop == 37) for start, stop in ranges)
    assert ranges[-1][1] - ranges[-1][0] <= 4


@pytest.mark.parametrize(
    ("length", "rows"),
    [(None, 65_536), (10, 1024), (262_144, 1024), (1_000_000, 2048), (10**7, 32_768), (10**9, 65_536)],
)
def test_parts_are_as_large_as_leaves_work_for_many(length, rows):
    assert Settings("auto", "auto", "auto").rows_of_part(length, None) == rows
    assert Settings("auto", "auto", 7).rows_of_part(length, None) == 7


class Streamed(IterableDataset):
    def __iter__(self):
        made = Made()
        return (made[index] for index in range(COUNT))


@pytest.mark.parametrize("engine", ["ray", "torchrun"])
def test_what_several_processes_cannot_do_is_refused(task, probes, tmp_path, engine, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, {"RANK": "0", "WORLD_SIZE": "1", "MASTER_PORT": "0"}.get(name, "127.0.0.1"))
    by: Ray | Torchrun = Ray() if engine == "ray" else Torchrun()
    with pytest.raises(ScoringError, match=r"pass output=.*all machines share"):
        by.check(open_source(Made()), None)
    with pytest.raises(ScoringError, match="can only be read from its start: pass engine='local'"):
        by.check(open_source(Streamed()), tmp_path)


def test_without_torchrun_the_command_is_named(task, probes, tmp_path, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ScoringError, match=r"was not started by torchrun.*`torchrun --nproc_per_node=2 script\.py`"):
        score_probes(task, probes, Made(), output=tmp_path, engine="torchrun", **OPTIONS)


@pytest.mark.parametrize("engine", ["dask", None, 3], ids=repr)
def test_an_unknown_engine_is_refused(task, probes, engine):
    with pytest.raises(ScoringError, match="pass 'local', 'torchrun' or 'ray'"):
        score_probes(task, probes, Made(), engine=engine, **OPTIONS)


@pytest.mark.parametrize(
    "settings", [{"workers": 0}, {"cpus_per_worker": -1}, {"gpus_per_worker": -1}, {"cpus_per_worker": 0}], ids=str
)
def test_settings_of_ray_that_make_no_sense_are_refused(settings):
    with pytest.raises(ScoringError, match=r"pass [01]"):
        Ray(**settings)


def test_without_ray_its_installation_is_named(task, probes, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray.data", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'diffin\[ray\]'"):
        score_probes(task, probes, Made(), output=tmp_path, engine="ray", **OPTIONS)


def test_importing_diffin_does_not_import_ray():
    done = subprocess.run([sys.executable, "-c", "import sys, diffin; sys.exit('ray' in sys.modules)"], check=False)
    assert done.returncode == 0


def test_replay_is_for_one_process(task, dataset, tmp_path):
    trajectory = record(tmp_path / "run", task, dataset, steps=4)
    with pytest.raises(DiffinError, match="Replay walks through the training in one process"):
        score(task, trajectory, dataset, query=dataset, estimator=Replay(), output=tmp_path / "out", engine=Ray())


def test_a_folder_that_another_scoring_took_over_is_left_alone(task, probes, make_probes, local, tmp_path):
    parts = FolderParts(local)
    manifest = parts.manifest()
    assert manifest is not None
    plan = go_on(task, probes, Settings(OPTIONS["derivatives"], 4, 4), manifest)
    late = Measuring(plan.engine, open_source(Made()), manifest)
    # The process that had the first part is thought dead, and somebody scores something else in its place.
    others = make_probes(task, tmp_path / "others", seed=9)
    score_probes(task, others, Made(), output=local, resume=False, **OPTIONS)
    before = contents(local)
    (local / "part-00000.parquet").unlink()
    with torch.no_grad(), pytest.raises(ScoringError, match="taken over by another scoring"):
        list(write_parts(late, parts, 0, 4, lambda amount: None))
    del before["part-00000.parquet"]
    assert contents(local) == before
