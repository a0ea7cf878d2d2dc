"""A folder from anywhere: whatever it holds, opening it runs no code, changes nothing, and takes no absurd memory."""

from __future__ import annotations

import json
import pickle
import resource
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_finished_trainings import SAVED, shard
from tiny_models import Sentences, arguments, classifier, trainer

import diffin
from diffin.errors import TrajectoryError

RAN: list[str] = []


class Payload:
    """Runs when it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (exec, ("import test_finished_hostile as here; here.RAN.append('ran')",))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    trainer(classifier(), arguments(folder, **SAVED), Sentences()).train()
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    shutil.copytree(saved, tmp_path / "out")
    return tmp_path / "out"


def change_state(**entries: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "checkpoint-12" / "trainer_state.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))

    return change


def change_optimizer(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        path = folder / "checkpoint-12" / "optimizer.pt"
        contents = torch.load(path, weights_only=True)
        torch.save(change(contents) or contents, path)

    return write


def change_group(**entries: Any) -> Callable[[Path], None]:
    return change_optimizer(lambda contents: contents["param_groups"][0].update(entries))


def map_weights_to(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        checkpoint = folder / "checkpoint-4"
        shard(checkpoint, ["model-00001-of-00001.safetensors"])
        shutil.copy(checkpoint / "model-00001-of-00001.safetensors", folder / "outside.safetensors")
        index = {"weight_map": {"bert.pooler.dense.weight": name}}
        (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))

    return change


def compressed(folder: Path) -> None:
    path = folder / "checkpoint-12" / "optimizer.pt"
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, contents in entries.items():
            archive.writestr(name, contents)


def endless(contents: Any) -> None:
    """A tensor of a petabyte, of one number."""
    contents["state"][0]["exp_avg_sq"] = torch.zeros(1).expand(1 << 25, 1 << 25)


def twice(contents: Any) -> None:
    contents["param_groups"][1]["params"] = contents["param_groups"][0]["params"]


def no_rate(contents: Any) -> None:
    contents["param_groups"][0]["lr"] = float("nan")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda f: (f / "checkpoint-4" / "optimizer.pt").write_bytes(pickle.dumps(Payload())), "weights_only=True"),
        (lambda f: torch.save(Payload(), f / "checkpoint-4" / "optimizer.pt"), "weights_only=True"),
        (lambda f: torch.save(Payload(), f / "checkpoint-12" / "scheduler.pt"), "weights_only=True"),
        (lambda f: (f / "checkpoint-4" / "model.safetensors").write_bytes(b"\xff" * 64), "damaged"),
        (lambda f: (f / "checkpoint-4" / "trainer_state.json").write_text("[" * 100_000), "damaged"),
        (lambda f: (f / "checkpoint-4" / "trainer_state.json").write_text("[]"), "damaged"),
        (map_weights_to("../outside.safetensors"), "no file of weights in the same folder"),
        (map_weights_to("/etc/passwd"), "no file of weights in the same folder"),
        (map_weights_to("..\\outside.safetensors"), "no file of weights in the same folder"),
        (map_weights_to("config.json"), "no file of weights in the same folder"),
        (map_weights_to("absent.safetensors"), "no file of weights in the same folder"),
        (change_state(global_step=10**15), "steps were taken"),
        (change_state(global_step=-3), "global_step=-3"),
        (change_state(global_step="12"), "global_step='12'"),
        (change_state(global_step=8), "both of step 8"),
        (change_state(log_history="none"), "log_history"),
        (change_optimizer(lambda c: {"state": []}), "parameter groups"),
        (change_optimizer(lambda c: {"state": c["state"], "param_groups": [{}]}), "parameter groups"),
        (change_optimizer(twice), "two groups"),
        (change_optimizer(no_rate), "learning rate"),
        (compressed, "compressed"),
        (change_optimizer(lambda c: {**c, "state": {"a": {}}}), "not as a trainer writes them"),
        (change_group(betas="x"), "betas='x'"),
        (change_group(betas=(0.9,)), "betas="),
        (change_group(eps=None), "eps=None"),
        (change_group(lr=None), "not as a trainer writes them"),
        (change_group(params=None), "not as a trainer writes them"),
        (change_group(params=["a"]), "not as a trainer writes them"),
    ],
)
def test_a_folder_that_no_trainer_wrote_is_refused_by_name(folder: Path, change: Any, sentence: str) -> None:
    change(folder)
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    with pytest.raises(TrajectoryError, match=sentence):
        diffin.Trajectory.open(folder)
    assert before == {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert not RAN


def test_the_pickle_of_the_arguments_is_never_read(folder: Path) -> None:
    for checkpoint in folder.iterdir():
        torch.save(Payload(), checkpoint / "training_args.bin")
        torch.save(Payload(), checkpoint / "rng_state.pth")
    trajectory = diffin.Trajectory.open(folder)
    assert trajectory.checkpoints[0].optimizer_state
    assert not RAN


def test_a_tensor_of_more_than_the_file_holds_is_refused_when_it_is_asked_for(folder: Path) -> None:
    change_optimizer(endless)(folder)
    with pytest.raises(TrajectoryError, match=r"more than it holds|cannot be told"):
        _ = diffin.Trajectory.open(folder).final.optimizer_state


@pytest.mark.parametrize(
    "settings",
    [
        {"num_hidden_layers": 10**9},
        {"text_config": {"num_hidden_layers": 10**9}},
        {"architectures": ["os"]},
        {"architectures": ["Trainer"]},
        {"architectures": 3},
        {"auto_map": {"AutoModel": "payload.Payload"}, "architectures": ["Payload"]},
        {"hidden_size": "wide"},
    ],
)
def test_a_configuration_that_describes_no_known_model_only_costs_the_names(
    folder: Path, settings: dict[str, Any]
) -> None:
    (folder / "checkpoint-4" / "payload.py").write_text("import test_finished_hostile as h; h.RAN.append('imported')")
    path = folder / "checkpoint-4" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(TrajectoryError, match="model=model"):
        diffin.Trajectory.open(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB
    assert diffin.Trajectory.open(folder, model=classifier()).total_steps == 12
    assert not RAN


def test_settings_that_would_fetch_something_are_not_handed_on(folder: Path) -> None:
    path = folder / "checkpoint-4" / "config.json"
    settings = {"_attn_implementation": "somebody/kernel", "attn_implementation": "somebody/kernel"}
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    assert diffin.Trajectory.open(folder).total_steps == 12


def test_folders_of_other_names_are_left_alone(folder: Path) -> None:
    for name in ("checkpoint-4x", "checkpoint--1", "checkpoint-", "checkpoint-" + "9" * 30):
        shutil.copytree(folder / "checkpoint-4", folder / name)
    assert [c.step for c in diffin.Trajectory.open(folder).stored] == [4, 8, 12]


def test_a_lightning_file_that_runs_code_is_refused(tmp_path: Path, saved: Path) -> None:
    tensors = load_file(saved / "checkpoint-4" / "model.safetensors")
    torch.save({"state_dict": tensors, "global_step": 3, "callbacks": Payload()}, tmp_path / "a.ckpt")
    with pytest.raises(TrajectoryError, match="weights_only=True"):
        diffin.Trajectory.open(tmp_path)
    for contents in ({"state_dict": tensors}, {"state_dict": tensors, "global_step": 10**15, "optimizer_states": []}):
        torch.save(contents, tmp_path / "a.ckpt")
        with pytest.raises(TrajectoryError, match=r"a\.ckpt"):
            diffin.Trajectory.open(tmp_path)
    assert not RAN
