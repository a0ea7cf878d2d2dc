"""The page about shards: its code runs, in order, as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from shard_files import pack, png, sample, uid
from torch import nn

from diffin.export import read_subset_file
from diffin.probes import CheckpointProbes, Probe, ProbeWriter
from diffin.tasks import FunctionTask

PAGE = Path(__file__).parents[2] / "docs" / "shards.md"


def test_the_code_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for part in range(9):
        pack(Path(f"shards/{part:03}.tar"), [(f"{n:05}", sample(n)) for n in range(part * 8, part * 8 + 8)])
    Path("shards/009.tar").write_bytes(b"cut")
    Path("rows").mkdir()
    rows = {"image": [png(n) for n in range(4)], "text": list("abcd"), "uid": list(map(uid, range(4)))}
    pq.write_table(pa.table(rows), "rows/a.parquet")
    Path("images/cat").mkdir(parents=True)
    Path("images/cat/a.png").write_bytes(png(1))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    names = [name for name, _ in model.named_parameters()]
    state = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    writer = ProbeWriter(tmp_path / "probes", names, {})
    writer.write(CheckpointProbes(1, state, (Probe(1.0, {n: torch.randn_like(t) for n, t in state.items()}),)))
    space = {
        "task": FunctionTask(model, lambda model, batch: model(batch[0]).square().sum(dim=1)),
        "probes": writer.finish([1]),
    }
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 7
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), space)
    assert list(space["train"].quarantined) == [str(tmp_path / "shards" / "009.tar")]
    assert len(space["scores"]) == 72
    assert len(read_subset_file("kept.npy")) == 69
    assert space["rows"].keys([2]) == [uid(2)]
