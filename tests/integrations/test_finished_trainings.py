"""A folder that a trainer saved and nobody recorded says what a recording of the same training says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from test_lightning_trainer import Module, fit, network
from test_lightning_trainer import data as points
from tiny_models import SAMPLES, Sentences, Texts, arguments, classifier, language_model, trainer
from torch import nn

import diffin
from diffin.errors import TrajectoryError
from diffin.integrations.hugging_face import RecorderCallback
from diffin.integrations.lightning import RecorderCallback as LightningRecorder
from diffin.tasks import Classification
from test_cli import run

SAVED = {"save_strategy": "steps", "save_steps": 4, "logging_strategy": "steps", "logging_steps": 1}


def both(tmp_path: Path, model: nn.Module, data: Any, **settings: Any) -> Path:
    """Train with the Trainer, saving three states, and record two of them. Returns the Trainer's folder."""
    callback = RecorderCallback(tmp_path / "run", checkpoints=[4, 8])
    args = arguments(tmp_path / "out", max_grad_norm=1.0, **{**SAVED, **settings})
    trainer(model, args, data, callback).train()
    return tmp_path / "out"


def influence(task: Any, trajectory: diffin.Trajectory, data: Any, query: Any, estimator: Any) -> Any:
    return diffin.score(
        task, trajectory, data, query=query, estimator=estimator, derivatives="forward", progress=False
    ).influence


def assert_same(finished: diffin.Trajectory, recorded: diffin.Trajectory) -> None:
    """All that an estimator sees of a training: then it cannot tell one from the other."""
    assert finished.optimizer == recorded.optimizer
    assert finished.parameter_shapes == recorded.parameter_shapes
    assert finished.total_steps == recorded.total_steps
    np.testing.assert_allclose(finished.steps.learning_rates, recorded.steps.learning_rates, rtol=1e-12)
    np.testing.assert_allclose(finished.steps.clip_coefficients, recorded.steps.clip_coefficients, rtol=1e-10)
    assert [c.step for c in finished.checkpoints] == [c.step for c in recorded.checkpoints]
    for one, other in zip(
        (*finished.checkpoints, finished.final), (*recorded.checkpoints, recorded.final), strict=True
    ):
        assert (one.group_learning_rates or ()) == pytest.approx(other.group_learning_rates or (), rel=1e-12)
        assert one.parameters.keys() == other.parameters.keys()
        assert all(torch.equal(tensor, other.parameters[name]) for name, tensor in one.parameters.items())
        for name, buffers in other.optimizer_state.items():
            found = one.optimizer_state.get(name, {})
            assert all(torch.equal(found[key], t) for key, t in buffers.items() if isinstance(t, torch.Tensor))
        if one.step < recorded.total_steps:
            assert finished.steps.constants(one.step) == recorded.steps.constants(other.step)


@pytest.mark.parametrize("optim", ["sgd", "adamw_torch"])
def test_a_finished_folder_scores_as_the_recording_of_the_same_training(tmp_path: Path, optim: str) -> None:
    model, data = classifier(), Sentences()
    folder = both(tmp_path, model, data, optim=optim, weight_decay=0.1)
    finished, recorded = diffin.Trajectory.open(folder), diffin.Trajectory.open(tmp_path / "run")
    assert (finished.steps.clip_coefficients < 1).any()
    assert [c.step for c in finished.checkpoints] == [4, 8]
    assert_same(finished, recorded)
    task, query, estimator = Classification(model), Sentences(9, seed=1), diffin.Unrolled("segments", rank=4)
    found, wanted = (influence(task, each, data, query, estimator) for each in (finished, recorded))
    np.testing.assert_allclose(found, wanted, rtol=1e-8, atol=1e-9 * float(np.abs(wanted).max()))
    assert "not recorded by diffin.Recorder" in finished.replay_obstacles()[0]
    with pytest.raises(TrajectoryError, match="cannot be repeated"):
        influence(Classification(model), finished, data, data, diffin.Replay())


@pytest.mark.slow
def test_one_command_scores_a_finished_folder(tmp_path: Path) -> None:
    trainer(classifier(), arguments(tmp_path / "out", **SAVED), Sentences()).train()
    (tmp_path / "problem.py").write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import diffin\nfrom tiny_models import Sentences, classifier\n"
        "def problem():\n"
        "    task = diffin.tasks.Classification(classifier())\n"
        "    return diffin.Problem(task, Sentences(), Sentences(9, seed=1))\n"
    )
    done = run("score", "problem.py", "out", "-o", "scores", "--quiet", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    scores = diffin.Scores.open(tmp_path / "scores")
    assert len(scores) == SAMPLES
    assert np.isfinite(scores.influence).all()
    assert scores.influence.std() > 0


def test_an_adapter_needs_the_model_it_adapts(tmp_path: Path) -> None:
    def adapted() -> nn.Module:
        return get_peft_model(classifier(), LoraConfig(r=2, target_modules=["query", "value"], task_type="SEQ_CLS"))

    torch.manual_seed(0)
    model, data = adapted(), Sentences()
    folder = both(tmp_path, model, data)
    with pytest.raises(TrajectoryError, match="model=model"):
        diffin.Trajectory.open(folder)
    finished = diffin.Trajectory.open(folder, model=adapted())
    recorded = diffin.Trajectory.open(tmp_path / "run")
    assert_same(finished, recorded)
    found = influence(Classification(model), finished, data, Sentences(9, seed=1), diffin.TracIn())
    assert np.isfinite(found).all()
    assert found.std() > 0


class Own(nn.Module):
    """A model of nobody's library; two of its weights are of one shape."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.embed = nn.Embedding(16, 4)
        self.b, self.a = nn.Linear(4, 4), nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)
        self.double()

    def forward(self, input_ids: Any, labels: Any = None) -> Any:
        logits = self.head(self.a(torch.tanh(self.b(self.embed(input_ids).mean(dim=1)))))
        return logits if labels is None else {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def test_a_model_of_ones_own_is_asked_for_where_shapes_do_not_tell(tmp_path: Path) -> None:
    folder = both(tmp_path, Own(), Sentences())
    with pytest.raises(TrajectoryError, match="model=model"):
        diffin.Trajectory.open(folder)
    finished, recorded = diffin.Trajectory.open(folder, model=Own()), diffin.Trajectory.open(tmp_path / "run")
    assert_same(finished, recorded)
    with pytest.raises(TrajectoryError, match="does not hold the parameters of the given model"):
        diffin.Trajectory.open(folder, model=nn.Linear(3, 2))


def test_tied_weights_have_the_name_that_the_model_uses(tmp_path: Path) -> None:
    folder = both(tmp_path, language_model(), Texts(ragged=False))
    assert_same(diffin.Trajectory.open(folder), diffin.Trajectory.open(tmp_path / "run"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short training with warm-up, which logs now and then."""
    folder = tmp_path_factory.mktemp("saved")
    trainer(classifier(), arguments(folder, **{**SAVED, "logging_steps": 3}), Sentences()).train()
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    shutil.copytree(saved, tmp_path / "out")
    return tmp_path / "out"


def test_learning_rates_between_logs_are_on_a_line(folder: Path) -> None:
    rates = diffin.Trajectory.open(folder).steps.learning_rates
    warming, falling = 0.05 * np.arange(3) / 3, 0.05 * (12 - np.arange(3, 12)) / 9
    # Known are the rates of the steps 2, 4, 5, 8 and 11, so all but the tip of the warm-up at step 3.
    known = np.delete(np.arange(12), 3)
    np.testing.assert_allclose(rates[known, 0], np.concatenate([warming, falling])[known], rtol=1e-9, atol=1e-12)
    assert (rates[:, 0] == rates[:, 1]).all()


def test_weights_in_shards_are_read_together(folder: Path) -> None:
    whole = diffin.Trajectory.open(folder).checkpoints[0].parameters
    checkpoint = folder / "checkpoint-4"
    shard(checkpoint, ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"])
    found = diffin.Trajectory.open(folder).checkpoints[0].parameters
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in whole.items())


def shard(checkpoint: Path, names: list[str]) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    parts = {
        name: {key: tensors[key] for key in list(tensors)[number :: len(names)]} for number, name in enumerate(names)
    }
    for name, part in parts.items():
        save_file(part, checkpoint / Path(name).name)
    index = {key: name for name, part in parts.items() for key in part}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


def test_a_state_that_was_kept_alone_stands_for_all(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.rmtree(folder / "checkpoint-4")
    shutil.rmtree(folder / "checkpoint-8")
    for path in (folder, folder / "checkpoint-12"):
        trajectory = diffin.Trajectory.open(path)
        assert "stands for the whole training" in caplog.text
        assert [c.step for c in trajectory.checkpoints] == [11]
        found = influence(
            Classification(classifier()), trajectory, Sentences(), Sentences(9, seed=1), diffin.Unrolled("segments")
        )
        assert np.isfinite(found).all()
        assert found.std() > 0


def test_a_model_saved_once_more_at_the_end_is_the_last_state(folder: Path) -> None:
    shutil.move(folder / "checkpoint-12", folder / "moved")
    shutil.copy(folder / "moved" / "trainer_state.json", folder)
    shutil.copy(folder / "moved" / "model.safetensors", folder)
    trajectory = diffin.Trajectory.open(folder)
    assert [c.step for c in trajectory.checkpoints] == [4, 8]
    assert trajectory.final.step == trajectory.total_steps == 12
    assert trajectory.optimizer.supported
    np.testing.assert_allclose(trajectory.steps.learning_rates[11], 0.05 / 9)
    shutil.move(folder / "moved", folder / "checkpoint-12")
    assert diffin.Trajectory.open(folder).final.path == folder / "checkpoint-12"


def test_without_the_optimizer_it_is_studied_as_plain_sgd_and_says_so(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for file in folder.glob("*/optimizer.pt"):
        file.unlink()
    trajectory = diffin.Trajectory.open(folder)
    assert "plain SGD" in caplog.text
    assert trajectory.optimizer is None
    np.testing.assert_allclose([c.learning_rate for c in trajectory.checkpoints], [0.05 * 8 / 9, 0.05 * 4 / 9])
    assert np.isfinite(
        influence(Classification(classifier()), trajectory, Sentences(), Sentences(9, seed=1), diffin.TracIn())
    ).all()


def test_of_an_unknown_optimizer_only_first_order_is_left(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for file in folder.glob("*/optimizer.pt"):
        contents = torch.load(file, weights_only=True)
        for group in contents["param_groups"]:
            group["momentum_decay"] = 0.004  # NAdam's
        torch.save(contents, file)
    trajectory = diffin.Trajectory.open(folder)
    assert not trajectory.optimizer.supported
    diffin.score(Classification(classifier()), trajectory, Sentences(), query=Sentences(9, seed=1), progress=False)
    assert "TracIn" in caplog.text


def test_the_largest_norm_can_be_said(folder: Path) -> None:
    usual, other, none = (
        diffin.Trajectory.open(folder, max_grad_norm=norm).steps.clip_coefficients for norm in (None, 0.5, 0.0)
    )
    clipped = usual < 1
    assert clipped.any()
    np.testing.assert_allclose(other[clipped], usual[clipped] / 2)
    assert (none == 1).all()


@pytest.mark.parametrize("optim", ["sgd", "adamw"])
def test_lightnings_checkpoints_score_as_the_recording_of_the_same_training(tmp_path: Path, optim: str) -> None:
    module = Module(network(), optim)
    saving = ModelCheckpoint(tmp_path / "out", every_n_train_steps=1, save_top_k=-1, save_last=True)
    recorder = LightningRecorder(tmp_path / "run", model=module.net, checkpoints=range(1, 12))
    fit(tmp_path, module, recorder, saving, gradient_clip_val=None)
    finished = diffin.Trajectory.open(tmp_path / "out", model=network())
    recorded = diffin.Trajectory.open(tmp_path / "run")
    assert [c.step for c in finished.checkpoints] == list(range(1, 12))
    assert_same(finished, recorded)
    whole = diffin.Trajectory.open(tmp_path / "out")
    assert whole.optimizer.groups[0].names == ("net.0.weight", "net.0.bias", "net.3.weight", "net.3.bias")
    found = influence(Classification(module), whole, points(), points(9, seed=1), diffin.TracIn())
    wanted = influence(Classification(module.net), recorded, points(), points(9, seed=1), diffin.TracIn())
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


class Scheme:
    """Something that a hyper-parameter may be."""


def test_objects_among_lightnings_hyper_parameters_are_not_built(tmp_path: Path) -> None:
    saving = ModelCheckpoint(tmp_path / "out", save_top_k=1)
    fit(tmp_path, Module(network()), saving)
    (file,) = (tmp_path / "out").glob("*.ckpt")
    contents = torch.load(file, weights_only=True)
    torch.save({**contents, "hyper_parameters": {"scheme": Scheme()}}, file)
    with pytest.raises(TrajectoryError, match="save_hyperparameters"):
        diffin.Trajectory.open(tmp_path / "out")
    torch.save({**contents, "hyper_parameters": {"width": 7}}, file)
    assert diffin.Trajectory.open(file).total_steps == 12
    with pytest.raises(TrajectoryError, match="max_grad_norm"):
        diffin.Trajectory.open(file, max_grad_norm=1.0)
