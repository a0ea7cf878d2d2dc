from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from recorded_loops import record
from safetensors.torch import load_file, save_file

from diffin.errors import TrajectoryError
from diffin.trajectory import Trajectory


def read_everything(path: Path) -> None:
    trajectory = Trajectory.open(path)
    for checkpoint in trajectory.stored:
        _ = checkpoint.state, checkpoint.optimizer_state, checkpoint.rng_state
    for step in range(trajectory.total_steps):
        trajectory.steps.indices(step)  # type: ignore[union-attr]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    contents = bytearray(path.read_bytes())
    contents[len(contents) * 3 // 4] ^= 0x10
    path.write_bytes(bytes(contents))


def empty(path: Path) -> None:
    path.write_bytes(b"")


FILES = [
    "checkpoints/000000000004/model.safetensors",
    "checkpoints/000000000004/training.safetensors",
    "checkpoints/000000000004/state.json",
    "steps/000000000001.parquet",
    "trajectory.json",
]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recorded") / "run"
    record(path, checkpoints=[4, 8])
    read_everything(path)
    return path


@pytest.mark.parametrize("damage", [truncate, empty, Path.unlink])
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_file_is_named(recorded: Path, tmp_path: Path, file: str, damage: Callable[[Path], None]) -> None:
    path = tmp_path / "run"
    shutil.copytree(recorded, path)
    damage(path / file)
    with pytest.raises(TrajectoryError) as raised:
        read_everything(path)
    named = "steps/000000000004.parquet" if "parquet" in file and damage is Path.unlink else file
    assert str(path / named) in str(raised.value) or (file == "trajectory.json" and str(path) in str(raised.value))


def test_a_flipped_bit_in_the_weights_is_seen(recorded: Path, tmp_path: Path) -> None:
    shutil.copytree(recorded, tmp_path / "run")
    flip(tmp_path / "run" / FILES[0])
    with pytest.raises(TrajectoryError, match="checksum"):
        read_everything(tmp_path / "run")


def test_a_list_in_the_place_of_the_optimizer_state(recorded: Path, tmp_path: Path) -> None:
    shutil.copytree(recorded, tmp_path / "run")
    index = tmp_path / "run" / FILES[2]
    index.write_text(json.dumps({**json.loads(index.read_text()), "optimizer": [{}]}))
    with pytest.raises(TrajectoryError, match=r"state\.json.*'optimizer'"):
        read_everything(tmp_path / "run")


@pytest.mark.parametrize("first", [[[None]], [None], [[]], [[0.1, 0.1]], [[], [0.1, 0.1]]])
def test_a_step_without_its_learning_rate(
    first: list[list[float | None] | None], recorded: Path, tmp_path: Path
) -> None:
    shutil.copytree(recorded, tmp_path / "run")
    path = tmp_path / "run" / FILES[3]
    table = pq.read_table(path)
    place = table.schema.get_field_index("learning_rates")
    values = [*first, *table["learning_rates"].to_pylist()[len(first) :]]
    pq.write_table(table.set_column(place, "learning_rates", [values]), path)
    with pytest.raises(TrajectoryError, match=r"000000000001\.parquet does not hold one learning rate for each"):
        read_everything(tmp_path / "run")


def test_a_damaged_state_does_not_harm_the_others(recorded: Path, tmp_path: Path) -> None:
    shutil.copytree(recorded, tmp_path / "run")
    flip(tmp_path / "run" / FILES[0])
    trajectory = Trajectory.open(tmp_path / "run")
    assert trajectory.checkpoints[1].step == 8
    assert trajectory.checkpoints[1].state
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "000000000004")
    assert [c.step for c in Trajectory.open(tmp_path / "run").checkpoints] == [8]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"version": 3}, "version 3; this version of diffin reads"),
        ({"format": "other"}, "format 'other'"),
        ({"dataset_size": "many"}, "damaged"),
        ({"optimizer": {}}, "damaged"),
        ({"shapes": [1]}, "damaged"),
    ],
)
def test_a_manifest_that_says_something_else_is_refused(
    recorded: Path, tmp_path: Path, change: dict[str, object], sentence: str
) -> None:
    shutil.copytree(recorded, tmp_path / "run")
    manifest = tmp_path / "run" / "trajectory.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **change}))
    with pytest.raises(TrajectoryError, match=sentence):
        Trajectory.open(tmp_path / "run")


def test_a_checkpoint_of_another_model_is_refused(recorded: Path, tmp_path: Path) -> None:
    for name, change in (("lacks", None), ("shape", torch.zeros(2))):
        path = tmp_path / name
        shutil.copytree(recorded, path)
        file = path / FILES[0]
        state = load_file(file)
        if change is None:
            del state["turned"]
        else:
            state["turned"] = change
        save_file(state, file)
        index = path / FILES[2]
        import zlib

        value = json.loads(index.read_text())
        value["crc32"]["model.safetensors"] = zlib.crc32(file.read_bytes())
        index.write_text(json.dumps(value))
        with pytest.raises(TrajectoryError, match=f"{name}.*another model"):
            _ = Trajectory.open(path).checkpoints[0].state


def test_what_is_no_trajectory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrajectoryError, match="does not exist"):
        Trajectory.open(tmp_path / "none")
    with pytest.raises(TrajectoryError, match="holds no recorded trajectory"):
        Trajectory.open(tmp_path)


def test_a_state_under_another_steps_name_is_refused(recorded: Path, tmp_path: Path) -> None:
    shutil.copytree(recorded, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "000000000004").rename(tmp_path / "run" / "checkpoints" / "000000000005")
    with pytest.raises(TrajectoryError, match="it says step 4"):
        Trajectory.open(tmp_path / "run")
