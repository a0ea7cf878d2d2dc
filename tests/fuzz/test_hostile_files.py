"""Files made to do harm: they are refused, or harmless."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffin import ProbeSet, Scores, Trajectory, sources
from diffin.errors import (
    DatasetError,
    DiffinError,
    EvaluationError,
    ProbeError,
    ScoringError,
    TrajectoryError,
    UnreadableError,
)
from diffin.evaluation.truth import Truth
from diffin.export import export, open_data, read_subset_file
from diffin.export.chosen import Chosen
from diffin.files import parse_json, write_atomically
from diffin.probes import clear_probes
from diffin.provenance import read_command
from diffin.sources.pictures import picture
from diffin.sources.tar import parted, runs
from diffin.trajectory import states
from fuzz.guarded import guarded
from fuzz.subjects import SUBJECTS, png, shard


@pytest.fixture(autouse=True)
def _guarded() -> Iterator[None]:
    with guarded(seconds=30):
        yield


def made(name: str, folder: Path) -> Path:
    folder.mkdir(parents=True)
    SUBJECTS[name].make(folder)
    return folder


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def a_link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.parametrize("other", [a_pipe, a_device, a_link_to_itself, Path.mkdir])
@pytest.mark.parametrize("name", [name for name in SUBJECTS if name != "shard-index"])
def test_what_is_no_file_is_refused_at_once(name: str, other: Callable[[Path], None], tmp_path: Path) -> None:
    whole = made(name, tmp_path / "whole")
    files = sorted(file.relative_to(whole) for file in whole.rglob("*") if file.is_file())
    # Files of one ending are read by one function: the first of each will do.
    for number, file in enumerate({file.suffix + file.name[:4]: file for file in files}.values()):
        folder = made(name, tmp_path / f"{number}")
        (folder / file).unlink()
        other(folder / file)
        with suppress(DiffinError):  # some are left out, as an image that cannot be read
            SUBJECTS[name].read(folder)


def test_a_folder_of_links_is_read_as_what_they_lead_to(tmp_path: Path) -> None:
    for name in ("run", "probes", "scores", "truth"):
        whole = made(name, tmp_path / name)
        for path in sorted(whole.rglob("*"), reverse=True):
            if path.is_file():
                moved = tmp_path / f"elsewhere-{name}-{path.parent.name}-{path.name}"
                path.rename(moved)
                path.symlink_to(moved)
        assert SUBJECTS[name].read(whole) == SUBJECTS[name].read(made(name, tmp_path / f"whole-{name}"))


def test_nothing_is_written_through_a_link_in_the_way(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("as it was")
    (tmp_path / "a.json.part").symlink_to(outside)
    with write_atomically(tmp_path / "a.json") as part:
        part.write_text("new")
    (tmp_path / "b.json").symlink_to(outside)
    with write_atomically(tmp_path / "b.json") as part:
        part.write_text("new")
    os.mkfifo(tmp_path / "c.json.part")
    with write_atomically(tmp_path / "c.json") as part:
        part.write_text("new")
    assert outside.read_text() == "as it was"
    assert all((tmp_path / f"{name}.json").read_text() == "new" for name in "abc")
    assert not (tmp_path / "b.json").is_symlink()


def test_nothing_is_removed_behind_a_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "probes").mkdir(parents=True)
    (outside / "probes.json").write_text("{}")
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    (checkpoints / "000000000004").symlink_to(outside)
    with pytest.raises(OSError):
        states.remove(checkpoints / "000000000004")
    (tmp_path / "probes").mkdir()
    (tmp_path / "probes" / "probes.json").symlink_to(outside / "probes.json")
    clear_probes(tmp_path / "probes")
    assert (outside / "probes.json").exists()


def changed(path: Path, **entries: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def test_an_index_of_probes_names_no_file_elsewhere(tmp_path: Path) -> None:
    folder = made("probes-across", tmp_path / "probes")
    for run in ("../../../x", "/etc/passwd", "", "0" * 15 + "/"):
        changed(folder / "probes.json", run=run)
        with pytest.raises(ProbeError, match="names no run"):
            ProbeSet.open(folder)


def test_an_index_of_shards_brings_no_names_along(tmp_path: Path) -> None:
    folder = made("shard-index", tmp_path / "shards")
    secret = shard(tmp_path / "secret.tar", [("a.txt", b"secret")])
    meta = folder / "index" / "meta.json"
    told = json.loads(meta.read_text())
    told["shards"][0]["name"] = str(secret)
    meta.write_text(json.dumps(told))
    found = sources.WebDataset(str(folder / "*.tar"), dict, index=folder / "index", progress=False)
    assert str(secret) not in found.shards


def test_positions_of_an_index_of_shards_are_checked_before_memory_is_taken(tmp_path: Path) -> None:
    for name, value in (("size", 2**50), ("size", -1), ("start", -512), ("first", 2**40), ("kind", 99)):
        folder = made("shard-index", tmp_path / f"{name}{value}")
        array = folder / "index" / name
        form = "<i4" if name == "kind" else "<i8"
        values = np.frombuffer(array.read_bytes(), form).copy()
        values[0] = value
        array.write_bytes(values.tobytes())
        found = sources.WebDataset(sorted(map(str, folder.glob("*.tar"))), dict, index=folder / "index", progress=False)
        with pytest.raises(DatasetError):
            found[0]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE])
def test_members_of_shards_that_are_no_files_are_refused(kind: bytes, tmp_path: Path) -> None:
    info = tarfile.TarInfo("a.png")
    info.type, info.linkname = kind, "/etc/passwd"
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(info)
    with pytest.raises(DatasetError, match="neither a plain file nor a folder"):
        open_data(tmp_path)


def header(name: bytes, kind: bytes, size: bytes) -> bytes:
    block = bytearray(512)
    block[: len(name)], block[156:157], block[124:136], block[257:265] = name, kind, size, b"ustar  \0"
    block[100:107], block[148:156] = b"0000644", b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(
            header(b"a.png", b"0", b"\xff" * 4 + (-1024).to_bytes(8, "big", signed=True)), id="ends before it begins"
        ),
        pytest.param(header(b"a.png", b"0", b"\x80" * 4 + (2**62).to_bytes(8, "big")), id="larger than anything"),
        pytest.param(header(b"a", b"L", b"77777777777\0") + b"x" * 512, id="a name of 8 GiB"),
        pytest.param(
            header(b"a", b"x", b"\x80" * 4 + (2**60).to_bytes(8, "big")) + b"x" * 512, id="headers of 2^60 bytes"
        ),
        pytest.param((header(b"a", b"L", b"00000000001\0") + b"x".ljust(512, b"\0")) * 3000, id="name after name"),
        pytest.param(header(b"a.png", b"S", b"00000000010\0")[:-12] + b"\1" * 12, id="a file of holes"),
    ],
)
def test_headers_of_archives_are_not_believed(data: bytes, tmp_path: Path) -> None:
    sound = shard(tmp_path / "sound.tar", [("b.png", b"1")]).read_bytes()
    for before in (b"", sound[:1024]):
        with pytest.raises(DatasetError):
            list(runs(io.BytesIO(before + data + sound), "it"))


NAME = st.text(st.sampled_from("ab./\n"), max_size=12)


@given(NAME)
def test_names_are_parted_as_the_library_of_that_name_does(name: str) -> None:
    import re

    found = re.match(r"(?s)^((?:.*/)?[^.]+)\.([^/]*)$", name)
    assert parted(name) == (None if found is None else found.groups())


def test_a_long_name_is_parted_soon() -> None:
    assert parted("a/" * 500_000) is None
    assert parted("/" * 500_000 + "a.b.c") == ("/" * 500_000 + "a", "b.c")


def npz(path: Path, claim: str | None, compression: int = zipfile.ZIP_STORED) -> None:
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, array in arrays.items():
            inner = io.BytesIO()
            np.save(inner, np.zeros(1 << 22) if name == "members" and claim is None else array)
            data = inner.getvalue()
            if name == "replicas" and claim is not None:
                text = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {claim}, }}\n".encode()
                data = b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text + b"x" * 64
            archive.writestr(f"{name}.npy", data)


def test_arrays_that_claim_more_than_they_hold_take_no_memory(tmp_path: Path) -> None:
    for number, claim in enumerate(("(1000000000000,)", "(0, 1000000000000)", "(8, -1)", None)):
        folder = made("truth", tmp_path / str(number))
        npz(folder / "truth.npz", claim, zipfile.ZIP_DEFLATED if claim is None else zipfile.ZIP_STORED)
        with pytest.raises(EvaluationError, match="damaged"):
            Truth.open(folder)


def test_tables_that_would_fill_the_memory_are_refused(tmp_path: Path) -> None:
    folder = made("scores", tmp_path / "scores")
    rows = 300_000_000
    schema = pa.schema([("index", pa.int64())])
    with pq.ParquetWriter(folder / "part-00000.parquet", schema) as writer:
        # A dictionary of one entry, repeated: some kilobytes for a gigabyte.
        chunk = pa.table({"index": np.zeros(rows // 30, np.int64)})
        for _ in range(30):
            writer.write_table(chunk, row_group_size=rows)
        del chunk
    assert (folder / "part-00000.parquet").stat().st_size < 2_000_000
    with pytest.raises(ScoringError, match="would become"):
        Scores.open(folder)


def test_texts_that_are_stored_once_and_repeated_are_refused(tmp_path: Path) -> None:
    rows = 50_000
    places = pa.array(np.zeros(rows, np.int32))
    run = made("run", tmp_path / "run")
    file = run / "steps" / "000000000000.parquet"
    steps = pq.read_table(file)
    for name, text in (("constants", "x" * 200_000), ("randomness", b"x" * 200_000)):
        values = pa.DictionaryArray.from_arrays(places, pa.array([text]))
        place = steps.schema.get_field_index(name)
        if name == "randomness":
            values = pa.ListArray.from_arrays(pa.array([0, *[rows] * steps.num_rows], pa.int32()), values)
        else:
            steps = pa.concat_tables([steps] * rows).slice(0, rows)
        pq.write_table(steps.set_column(place, name, values), file, compression="zstd", store_schema=False)
        assert file.stat().st_size < 20_000_000
        with pytest.raises(TrajectoryError, match="would become"):
            SUBJECTS["run"].read(run)
        steps = steps.slice(0, 1)


def test_a_manifest_that_claims_many_samples_takes_no_memory(tmp_path: Path) -> None:
    for part_rows in (10**15, 1):
        folder = made("scores", tmp_path / str(part_rows))
        changed(folder / "scores.json", rows=10**15, part_rows=part_rows)
        with pytest.raises(ScoringError, match="part"):
            Scores.open(folder)


def test_json_is_not_followed_into_the_deep() -> None:
    for text in ("[" * 100_000, "[" * 100_000 + "]" * 100_000, '{"a":' * 500 + "1" + "}" * 500):
        with pytest.raises(ValueError):
            parse_json(text)


def bomb(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    pixels = zlib.compress(bytes(100_000))
    shape = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", shape) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_images_that_would_fill_the_memory_are_unreadable() -> None:
    for width, height in ((50_000, 50_000), (2**31 - 1, 2**31 - 1)):
        with pytest.raises(UnreadableError, match="cannot be read as an image"):
            picture(bomb(width, height))


def test_no_program_is_started_for_an_image() -> None:
    """Pillow would hand these over to Ghostscript, by what is in them and not by their name."""
    with pytest.raises(UnreadableError, match="no image that"):
        picture(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(%pipe%touch x) (w) file\nshowpage\n")


def test_links_in_a_circle_are_refused_soon(tmp_path: Path) -> None:
    (tmp_path / "a" / "in").mkdir(parents=True)
    (tmp_path / "a" / "0.png").write_bytes(png(1))
    for name in "bc":
        (tmp_path / "a" / "in" / name).symlink_to(tmp_path / "a")
    for opened in (sources.Images, open_data):
        with pytest.raises(DatasetError, match="again and again"):
            opened(tmp_path)


def test_a_device_in_the_place_of_an_image_is_not_copied(tmp_path: Path) -> None:
    folder = made("pictures", tmp_path / "pictures")
    (folder / "cat" / "0.png").unlink()
    (folder / "cat" / "0.png").symlink_to("/dev/zero")
    data = open_data(folder)
    with pytest.raises(DatasetError, match="no plain file"):
        export(data, tmp_path / "out", Chosen(data.size, np.arange(data.size)))
    assert not (tmp_path / "out").exists()


class Run:
    """What a pickle would run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.path),)


def test_no_pickle_is_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    for name in ("a.pt", "b.pth"):
        torch.save({"w": torch.ones(2), "x": Run(mark)}, tmp_path / name, _use_new_zipfile_serialization=name == "a.pt")
        with pytest.raises(TrajectoryError, match="weights_only"):
            Trajectory.from_checkpoints([tmp_path / name], [0], [0.1])
    (tmp_path / "c.pt").write_bytes(pickle.dumps(Run(mark)))
    with pytest.raises(TrajectoryError):
        Trajectory.from_checkpoints([tmp_path / "c.pt"], [0], [0.1])
    saved = made("lightning", tmp_path / "lightning")
    torch.save({"state_dict": {}, "global_step": 3, "x": Run(mark)}, saved / "3.ckpt")
    with pytest.raises(TrajectoryError):
        Trajectory.open(saved)
    trained = made("trainer", tmp_path / "trainer")
    (trained / "checkpoint-2" / "training_args.bin").write_bytes(pickle.dumps(Run(mark)))
    Trajectory.open(trained)
    objects: Any = np.array([Run(mark)], dtype=object)
    np.save(tmp_path / "d.npy", objects, allow_pickle=True)
    with pytest.raises(DatasetError):
        read_subset_file(tmp_path / "d.npy")
    truth = made("truth", tmp_path / "truth")
    np.savez(truth / "truth.npz", replicas=objects, members=objects, sizes=np.array([1]))
    with pytest.raises(EvaluationError):
        Truth.open(truth)
    (tmp_path / "run.yaml").write_text(f"command: !!python/object/apply:os.mkdir ['{mark}']\n")
    assert read_command(tmp_path) is None
    assert not mark.exists()


def test_what_weights_may_call_takes_no_memory(tmp_path: Path) -> None:
    class Large:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
            return bytearray, (1 << 50,)

    torch.save({"w": torch.ones(2), "x": Large()}, tmp_path / "a.pt")
    with pytest.raises(TrajectoryError):
        Trajectory.from_checkpoints([tmp_path / "a.pt"], [0], [0.1])


def test_a_compressed_checkpoint_is_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1 << 20)}, tmp_path / "a.pt")
    with (
        zipfile.ZipFile(tmp_path / "a.pt") as sound,
        zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for entry in sound.infolist():
            small.writestr(entry.filename, sound.read(entry))
    with pytest.raises(TrajectoryError, match="compressed"):
        Trajectory.from_checkpoints([tmp_path / "b.pt"], [0], [0.1])


def test_a_configuration_takes_no_memory_for_what_it_claims() -> None:
    from diffin.trajectory.architecture import outline

    small = {"architectures": ["BertForSequenceClassification"], "num_hidden_layers": 1, "hidden_size": 12}
    assert outline(small, 30) is not None
    for claim in ({"num_labels": 10**12}, {"num_hidden_layers": 10**9}, {"vision_config": {"num_labels": 10**12}}):
        assert outline({**small, **claim}, 30) is None


def test_shards_of_weights_lie_in_their_folder(tmp_path: Path) -> None:
    folder = made("trainer", tmp_path / "trainer")
    weights = folder / "checkpoint-2" / "model.safetensors"
    weights.rename(tmp_path / "model.safetensors")
    for name in ("../../model.safetensors", str(tmp_path / "model.safetensors"), "..", "a\0b.safetensors"):
        (folder / "checkpoint-2" / "model.safetensors.index.json").write_text(
            json.dumps({"weight_map": {"0.bias": name}})
        )
        with pytest.raises(TrajectoryError, match="not to be trusted"):
            SUBJECTS["trainer"].read(folder)
