"""Scores of shards: those of the same samples in memory, with keys, and reasons for what cannot be read."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Subset

from diffin.derivatives import Forward
from diffin.scoring import Scores, score_probes
from diffin.sources import WebDataset


def _pack(path: Path, samples, without: int) -> Path:
    with tarfile.open(path, "w") as archive:
        for number, (inputs, target) in samples:
            members = {"bin": inputs.numpy().tobytes(), "cls": str(int(target)).encode()}
            for kind, data in members.items():
                if kind == "cls" and number == without:
                    continue
                info = tarfile.TarInfo(f"k{number:03}.{kind}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


def _decode(stored: dict[str, bytes]) -> tuple[torch.Tensor, int]:
    return torch.frombuffer(bytearray(stored["bin"]), dtype=torch.float64), int(stored["cls"])


def test_rows_are_those_of_the_samples_in_memory_and_say_what_is_missing(task, probes, dataset, tmp_path):
    samples = list(enumerate(dataset))
    bounds = [(0, 9), (9, 21), (21, 30), (30, 37)]
    paths = [_pack(tmp_path / f"{first}.tar", samples[first:last], without=4) for first, last in bounds]
    torn = tmp_path / "torn.tar"
    torn.write_bytes(paths[0].read_bytes()[:700])
    data = WebDataset([torn, *paths], _decode, index=tmp_path / "index", progress=False)
    assert list(data.quarantined) == [str(torn)]
    assert len(data) == 37
    paths[2].unlink()  # breaks after it was indexed; a batch of 4 has nothing that can be read
    lost = [4, *range(21, 30)]
    options = {"derivatives": Forward(), "progress": False, "batch_size": 4, "part_rows": 10}
    there = np.setdiff1d(np.arange(37), lost)
    expected = score_probes(task, probes, Subset(dataset, there.tolist()), **options)
    tables = []
    for workers in (0, 2):
        out = tmp_path / f"out-{workers}"
        scores = score_probes(task, probes, data, output=out, workers=workers, **options)
        assert scores.failed.tolist() == lost
        np.testing.assert_allclose(scores.influence[there], expected.influence, rtol=1e-12)
        table = Scores.open(out).table
        assert table.column("key").to_pylist() == [f"k{number:03}" for number in range(37)]
        failure = table.column("failure").to_pylist()
        assert failure[4] == "KeyError: 'cls' (there is bin)"
        assert set(failure[21:30]) == {f"there is no {paths[2]}"}
        assert [failure[number] for number in there] == [None] * len(there)
        tables.append(table)
    assert tables[0].equals(tables[1])
