from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from recorded_loops import Net, same
from safetensors.torch import save_file

from diffin.errors import TrajectoryError
from diffin.trajectory import Trajectory


def state(seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {name: tensor.contiguous() for name, tensor in Net().state_dict().items()}


def save(path: Path, seed: int = 0, **options: Any) -> Path:
    torch.save(state(seed), path, **options)
    return path


@pytest.mark.parametrize("key", [None, "model", "state_dict", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_a_state_dict_is_found_in_whatever_loops_wrap_it_in(tmp_path: Path, key: str | None, prefix: str) -> None:
    wrapped: dict[str, Any] = {prefix + name: tensor for name, tensor in state(1).items()}
    contents = wrapped if key is None else {key: OrderedDict(wrapped), "epoch": 3, "optimizer": {"state": {}}}
    torch.save(contents, tmp_path / "a.pt")
    trajectory = Trajectory.from_checkpoints([tmp_path / "a.pt"], [100], [0.1], dataset_size=50)
    assert same(trajectory.checkpoints[0].state, state(1))


def test_foreign_checkpoints_answer_what_can_be_known(tmp_path: Path) -> None:
    plain = {name: t.clone() for name, t in state(3).items()}
    save_file(plain, tmp_path / "c.safetensors")
    paths = [save(tmp_path / "a.pt", 1), save(tmp_path / "b.pth", 2, _use_new_zipfile_serialization=False)]
    trajectory = Trajectory.from_checkpoints([*paths, tmp_path / "c.safetensors"], [10, 20, 40], [0.3, 0.2, 0.1])
    assert [c.step for c in trajectory.checkpoints] == [10, 20, 40]
    assert [c.learning_rate for c in trajectory.checkpoints] == [0.3, 0.2, 0.1]
    for seed, checkpoint in enumerate(trajectory.checkpoints, start=1):
        assert same(checkpoint.state, state(seed))
    first = trajectory.checkpoints[0]
    assert first.learning_rates(["tied.weight"]) == {"tied.weight": 0.3}
    assert set(first.buffers) == {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    assert trajectory.dataset_size is None
    assert (trajectory.optimizer, trajectory.steps, trajectory.initial, trajectory.final) == (None,) * 4
    assert trajectory.size_bytes == sum(file.stat().st_size for file in tmp_path.iterdir())
    assert trajectory.parameter_shapes["first.bias"] == (6,)
    assert "not recorded by diffin.Recorder" in trajectory.replay_obstacles()[0]
    for access in ("optimizer_state", "rng_state"):
        with pytest.raises(TrajectoryError, match="foreign checkpoint"):
            getattr(first, access)


@pytest.mark.parametrize(
    ("steps", "rates", "sentence"),
    [
        ([1], [0.1, 0.1], "lengths 2, 1 and 2"),
        ([1, 2], [0.1], "lengths 2, 2 and 1"),
        ([2, 1], [0.1, 0.1], "2 is followed by 1"),
        ([1, 1], [0.1, 0.1], "1 is followed by 1"),
        ([-1, 1], [0.1, 0.1], "steps contains -1"),
        ([0.5, 1], [0.1, 0.1], "steps contains 0.5"),
        ([1, 2], [0.1, 0.0], "learning_rates contains 0.0"),
        ([1, 2], [0.1, -1], "learning_rates contains -1"),
        ([1, 2], [0.1, float("nan")], "learning_rates contains nan"),
        ([1, 2], [0.1, [0.1]], "learning_rates contains"),
    ],
)
def test_steps_and_rates_that_make_no_sense_are_refused(tmp_path: Path, steps: Any, rates: Any, sentence: str) -> None:
    paths = [save(tmp_path / "a.pt"), save(tmp_path / "b.pt")]
    with pytest.raises(TrajectoryError, match=sentence):
        Trajectory.from_checkpoints(paths, steps, rates)


class Payload:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (exec, ("raise SystemExit('this must never run')",))


def write_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Payload()))


def write_truncated(path: Path) -> None:
    contents = save(path).read_bytes()
    path.write_bytes(contents[: len(contents) // 2])


@pytest.mark.parametrize(
    ("name", "write", "sentence"),
    [
        ("a.pt", lambda path: torch.save({"epoch": 3}, path), "no tensors by name"),
        ("a.pt", lambda path: torch.save([torch.zeros(2)], path), "no tensors by name"),
        ("a.pt", lambda path: torch.save({"model": {}}, path), "no tensors by name"),
        ("a.pt", lambda path: torch.save(Net(), path), "weights_only=True"),
        ("a.pt", lambda path: torch.save(Payload(), path), "weights_only=True"),
        ("a.pt", write_pickle, "weights_only=True"),
        ("a.pt", write_truncated, "damaged"),
        ("a.pt", lambda path: path.write_bytes(b""), "damaged"),
        ("a.pt", lambda path: path.write_text("hello"), "damaged"),
        ("a.safetensors", lambda path: path.write_text("hello"), "damaged"),
        ("a.safetensors", lambda path: path.write_bytes(b""), "damaged"),
        ("a.safetensors", lambda path: path.mkdir(), "is not a file"),
        ("a.pt", lambda path: None, "is not a file"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_refused_by_name_and_never_run(
    tmp_path: Path, name: str, write: Any, sentence: str
) -> None:
    write(tmp_path / name)
    with pytest.raises(TrajectoryError, match=sentence) as raised:
        Trajectory.from_checkpoints([tmp_path / name], [1], [0.1])
    assert str(tmp_path / name) in str(raised.value)


def test_checkpoints_of_two_models_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "a.pt")
    for other, sentence in (({"b": torch.zeros(2)}, "lacks"), ({"a": torch.zeros(3)}, "shape")):
        torch.save(other, tmp_path / "b.pt")
        with pytest.raises(TrajectoryError, match=sentence):
            Trajectory.from_checkpoints([tmp_path / "a.pt", tmp_path / "b.pt"], [1, 2], [0.1, 0.1])
    torch.save({"a": torch.zeros(2), "b": torch.zeros(2)}, tmp_path / "b.pt")
    with pytest.raises(TrajectoryError, match="'b' that"):
        Trajectory.from_checkpoints([tmp_path / "a.pt", tmp_path / "b.pt"], [1, 2], [0.1, 0.1])
    with pytest.raises(TrajectoryError, match="paths is empty"):
        Trajectory.from_checkpoints([], [], [])
    with pytest.raises(TrajectoryError, match="dataset_size=0"):
        Trajectory.from_checkpoints([tmp_path / "a.pt"], [1], [0.1], dataset_size=0)
