"""Probes that several processes build together are those of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from diffin import ProbeSet, TracIn, Trajectory, build_probes
from diffin.errors import DiffinError
from diffin.parallel import Ranks, _buckets
from diffin.tasks import Classification
from probes_of_ranks import ASKED, CASES, TRAIN, build, model, train

SCRIPT = Path(__file__).with_name("probes_of_ranks.py")
DIFFERENCED = 1e-7
"""A difference of gradients divides their rounding by a step of some 1e-8."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The probes of all cases by this process in one/, and by two in two/."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("ranks")
    train(root / "runs")
    build(root / "runs", root / "one", "local")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", SCRIPT, root / "runs", root / "two"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parent)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return root


@pytest.mark.parametrize("case", CASES)
def test_probes_of_two_processes_are_those_of_one(built, case):
    alone, together = ProbeSet.open(built / "one" / case), ProbeSet.open(built / "two" / case)
    assert alone.steps == together.steps
    assert alone.metadata == together.metadata
    for expected, found in zip(alone, together, strict=True):
        # Of the steps, which are taken again, the sums over a batch are taken in another order.
        for name, t in expected.state.items():
            assert torch.allclose(t, found.state[name], rtol=1e-10, atol=1e-12)
        pairs = zip([*expected.probes, *expected.self_probes], [*found.probes, *found.self_probes], strict=True)
        for one, other in pairs:
            assert one.weight == other.weight
            for name, t in one.tensors().items():
                tolerance = (DIFFERENCED if "difference" in case else 1e-10) * float(t.abs().max())
                assert torch.allclose(t, other.tensors()[name], rtol=0, atol=tolerance), (case, expected.step, name)


def test_steps_are_shared_where_samples_know_nothing_of_each_other(built):
    for rank in (0, 1):
        shared = json.loads((built / "two" / f"shared-{rank}.json").read_text())
        assert shared == {"plain": True, "adam": True, "single": True, "dropout": False, "batchnorm": False}


def test_each_process_reads_its_share_of_the_query(built):
    read = [json.loads((built / "two" / f"read-{rank}.json").read_text()) for rank in (0, 1)]
    assert read == [[0, 6], [6, 13]]


def test_a_sharded_model_is_refused(built):
    for rank in (0, 1):
        assert "are sharded (FSDP" in (built / "two" / f"sharded-{rank}.txt").read_text()


def test_a_failure_of_one_process_is_that_of_all(built):
    own = (built / "two" / "failure-1.txt").read_text()
    assert own == "OSError: the disk is gone"
    assert (built / "two" / "failure-0.txt").read_text() == f"RankError: rank 1 of 2 failed with {own}"


def test_an_unknown_engine_is_refused(built, tmp_path):
    task, trajectory = Classification(model("plain")), Trajectory.open(built / "runs" / "plain")
    with pytest.raises(DiffinError, match="'local' or 'torchrun'"):
        build_probes(task, trajectory, TRAIN, query=ASKED, estimator=TracIn(), output=tmp_path, engine="ray")


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize("length", [0, 1, 5, 64])
def test_shares_are_the_whole_and_differ_by_one_at_most(length, count):
    shares = []
    for rank in range(count):
        ranks = Ranks()
        ranks.rank, ranks.count = rank, count
        shares.append(ranks.share(length))
    assert [position for share in shares for position in range(*share)] == list(range(length))
    sizes = [end - start for start, end in shares]
    assert max(sizes) - min(sizes) <= 1


def test_every_tensor_is_in_one_bucket_with_those_of_its_kind():
    kinds = (torch.float32, torch.float64)
    vector = {f"{kind}-{size}": torch.zeros(size, dtype=kind) for kind in kinds for size in (2**23 + 1, 2**22, 3, 0)}
    buckets = _buckets(vector)
    assert sorted(name for names in buckets for name in names) == sorted(vector)
    assert all(len({vector[name].dtype for name in names}) == 1 for names in buckets)
    assert len(buckets) > 2
