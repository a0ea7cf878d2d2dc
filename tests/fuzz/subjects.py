"""What reads files: each with a folder of whole ones, and a function that opens it and looks at everything."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import save_file

from diffin import Trajectory, sources
from diffin.explore.marks import Marks
from diffin.export import open_data, read_subset_file, subset_file
from diffin.sources.locations import stamp
from formats.reading import READERS

VERSIONS = sorted(path for path in (Path(__file__).parents[1] / "formats").glob("v*") if path.is_dir())


@dataclass(frozen=True)
class Subject:
    """Something that reads.

    Attributes:
        make: writes whole files into a folder.
        read: opens the folder, and looks at all that is in it.
        seal: gives damaged files the checksums that they should have, so that what is behind those is reached.
    """

    make: Callable[[Path], None]
    read: Callable[[Path], Any]
    seal: Callable[[Path], None] = lambda folder: None


def _seal_run(folder: Path) -> None:
    for index in folder.glob("checkpoints/*/state.json"):
        value = json.loads(index.read_text())
        value["crc32"] = {name: zlib.crc32((index.parent / name).read_bytes()) for name in value["crc32"]}
        index.write_text(json.dumps(value))


def _seal_probes(folder: Path) -> None:
    index = folder / "probes.json"
    value = json.loads(index.read_text())

    def digest(name: str) -> str:
        return hashlib.sha256((folder / name).read_bytes()).hexdigest()

    for entry in value["checkpoints"]:
        step = entry["step"]
        names = [f"probe-{step:08d}-{number:03d}.safetensors" for number in range(len(entry["weights"]))]
        entry["digests"] = [digest(name) for name in (f"state-{step:08d}.safetensors", *names)]
        if "end" in entry:
            entry["end"] = digest(f"end-{value['run']}.safetensors")
    index.write_text(json.dumps(value))


def _fixture(name: str) -> Subject:
    def make(folder: Path) -> None:
        shutil.copytree(VERSIONS[-1] / name, folder, dirs_exist_ok=True)

    seal = _seal_run if name == "run" else _seal_probes if name.startswith("probes") else Subject.seal
    return Subject(make, READERS[name], seal)


def png(number: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((3, 4, 3), 40 * number, np.uint8)).save(out, "PNG")
    return out.getvalue()


def shard(path: Path, members: list[tuple[str, bytes]], form: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def _make_shards(folder: Path) -> None:
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        members = [
            (f"{'d' * 120 if number else 'd'}/{number}.{kind}", data)
            for number in range(3)
            for kind, data in (("png", png(number)), ("txt", b"a b"), ("json", b'{"label": 1, "uid": "u%d"}' % number))
        ]
        shard(folder / f"{form}.tar", members, form)


def _read_shards(folder: Path) -> None:
    found = sources.WebDataset(
        sorted(map(str, folder.glob("*.tar"))),
        sources.Pair(),
        index=folder.with_name(folder.name + "-index"),
        key="uid",
        progress=False,
    )
    found.items(range(len(found)))
    found.keys(range(len(found)))
    data = open_data(folder)
    list(data.keys())
    list(data.labels()) if data.label else None


def _make_index(folder: Path) -> None:
    _make_shards(folder)
    made = sources.WebDataset(str(folder / "*.tar"), sources.Pair(), index=folder / "index", progress=False)
    assert len(made) == 9


def _seal_index(folder: Path) -> None:
    """Say that the index is of the shards where they lie now; without, it would be made anew."""
    meta = folder / "index" / "meta.json"
    names = sorted(map(str, folder.glob("*.tar")))
    stamps = [[name, stamp(name)] for name in names]
    value = json.loads(meta.read_text())
    value["identity"] = hashlib.sha256(json.dumps([1, None, stamps]).encode()).hexdigest()[:24]
    for shard, name in zip(value["shards"], names, strict=False):
        shard["name"] = name
    meta.write_text(json.dumps(value))


def _read_index(folder: Path) -> None:
    found = sources.WebDataset(
        sorted(map(str, folder.glob("*.tar"))), sources.Pair(), index=folder / "index", progress=False
    )
    found.items(range(len(found)))
    found.keys(range(len(found)))


def _make_rows(folder: Path) -> None:
    for name in ("a", "b"):
        columns = {
            "image": [{"bytes": png(number)} for number in range(4)],
            "text": ["a", "b", "c", "d"],
            "label": pa.array([0, 1, 0, 1]),
            "uid": [f"{name}{number}" for number in range(4)],
        }
        pq.write_table(pa.table(columns), folder / f"{name}.parquet", row_group_size=2)


def _read_rows(folder: Path) -> None:
    names = sorted(map(str, folder.glob("*.parquet")))
    found = sources.Parquet(names, sources.Pair("image", "text"), key="uid")
    found.items(range(len(found)))
    found.keys(range(len(found)))
    data = open_data(folder, key_column="uid")
    list(data.keys())
    list(data.labels()) if data.label else None


def _make_pictures(folder: Path) -> None:
    for form in ("png", "jpg", "bmp", "tif", "webp", "ppm"):
        for name in ("cat", "dog"):
            (folder / name).mkdir(exist_ok=True)
            with Image.open(io.BytesIO(png(2))) as image:
                image.save(folder / name / f"0.{form}")


def _read_pictures(folder: Path) -> None:
    found = sources.Images(folder)
    found.items(range(len(found)))
    list(open_data(folder).keys())


def _make_foreign(folder: Path) -> None:
    state = {"a.weight": torch.ones(3, 2), "a.bias": torch.zeros(3), "n": torch.tensor(4)}
    torch.save({"model": state, "epoch": 3, "args": {"lr": 0.1}}, folder / "0.pt")
    torch.save(state, folder / "1.pth", _use_new_zipfile_serialization=False)
    save_file(state, folder / "2.safetensors")


def _read_foreign(folder: Path) -> None:
    found = Trajectory.from_checkpoints(
        [folder / name for name in ("0.pt", "1.pth", "2.safetensors")], [0, 1, 2], [0.1] * 3
    )
    for checkpoint in found.stored:
        _ = checkpoint.parameters, checkpoint.buffers


def _make_saved(folder: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 2))
    optimizer = torch.optim.AdamW(model.parameters())
    for step in (1, 2):
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        saved = {"state_dict": model.state_dict(), "global_step": step, "optimizer_states": [optimizer.state_dict()]}
        torch.save(saved, folder / f"{step}.ckpt")


def _make_trained(folder: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 2))
    optimizer = torch.optim.AdamW(model.parameters())
    history = [{"step": step, "learning_rate": 1e-3, "grad_norm": 0.5, "loss": 1.0} for step in (1, 2)]
    for step in (1, 2):
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        place = folder / f"checkpoint-{step}"
        place.mkdir()
        save_file(model.state_dict(), place / "model.safetensors")
        torch.save(optimizer.state_dict(), place / "optimizer.pt")
        torch.save({"_last_lr": [1e-3]}, place / "scheduler.pt")
        (place / "trainer_state.json").write_text(json.dumps({"global_step": step, "log_history": history[:step]}))
        (place / "config.json").write_text(json.dumps({"architectures": ["None"], "hidden_size": 3}))


def _read_saved(folder: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 2))
    for found in (Trajectory.open(folder), Trajectory.open(folder, model=model)):
        for checkpoint in found.stored:
            _ = checkpoint.parameters, checkpoint.optimizer_state, checkpoint.group_learning_rates
        assert found.steps is not None
        _ = [found.steps.constants(step) for step in range(len(found.steps))]


SUBJECTS = {
    **{name: _fixture(name) for name in READERS},
    "marks": Subject(
        lambda folder: shutil.copytree(VERSIONS[-1] / "decisions", folder, dirs_exist_ok=True) and None,
        lambda folder: Marks(24, folder / "decisions.json", classes=3).to_json(),
    ),
    "shards": Subject(_make_shards, _read_shards),
    "shard-index": Subject(_make_index, _read_index, _seal_index),
    "rows": Subject(_make_rows, _read_rows),
    "pictures": Subject(_make_pictures, _read_pictures),
    "checkpoints": Subject(_make_foreign, _read_foreign),
    "lightning": Subject(_make_saved, _read_saved),
    "trainer": Subject(_make_trained, _read_saved),
    "subset": Subject(
        lambda folder: subset_file(["0" * 31 + digit for digit in "123"], folder / "a.npy") and None,
        lambda folder: read_subset_file(folder / "a.npy"),
    ),
}
"""By name."""
