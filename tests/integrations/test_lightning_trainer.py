"""A recorded Lightning ``Trainer`` is the training that it would have been, and what it records is what it did."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import diffin
from diffin.errors import RecordingError
from diffin.rerun import Rerun
from diffin.sources import open_source
from diffin.tasks import Classification
from diffin.trajectory import StepLog

lightning = pytest.importorskip("lightning.pytorch")

from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402

from diffin.integrations.lightning import RecorderCallback  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::Warning:lightning", "ignore::UserWarning:torch")

SAMPLES = 22


def data(count: int = SAMPLES, seed: int = 0) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 5, generator=generator, dtype=torch.float64)
    return TensorDataset(inputs, (inputs[:, 0] * inputs[:, 1] > 0).long())


def network(dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Dropout(dropout), nn.Linear(7, 2)).double()


class Module(lightning.LightningModule):
    def __init__(self, net: nn.Module, optim: str = "adamw", loader: Any = None) -> None:
        super().__init__()
        self.net, self.optim = net, optim
        self.loader = loader
        self.seen: list[Tensor] = []

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs)

    def training_step(self, batch: Any, number: int) -> Tensor:
        self.seen.append(batch[0])
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def train_dataloader(self) -> Any:
        return self.loader

    def configure_optimizers(self) -> Any:
        kind = torch.optim.SGD if self.optim == "sgd" else torch.optim.AdamW
        made = kind(self.parameters(), lr=0.05, weight_decay=0.1)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(made, 12)
        return {"optimizer": made, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fit(path: Path, module: Module, *callbacks: Any, ckpt_path: Any = None, loader: Any = None, **settings: Any) -> Any:
    """Three epochs of micro-batches of three, two to a step, clipped; 8 micro-batches an epoch, the last of one sample."""
    usual = {
        "max_epochs": 3,
        "accumulate_grad_batches": 2,
        "gradient_clip_val": 0.5,
        "logger": False,
        "enable_checkpointing": any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
        "default_root_dir": path,
    }
    made = lightning.Trainer(callbacks=list(callbacks), **{**usual, **settings})
    if loader is None and module.loader is None:
        loader = shuffled(data())
    torch.manual_seed(7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made.fit(module, loader, ckpt_path=ckpt_path)
    return made


def shuffled(dataset: Any, **settings: Any) -> DataLoader[Any]:
    return DataLoader(dataset, 3, shuffle=True, **settings)


def log_of(trajectory: diffin.Trajectory) -> StepLog:
    assert trajectory.steps is not None
    return trajectory.steps


def samples_of(trajectory: diffin.Trajectory) -> list[int]:
    log = log_of(trajectory)
    return [int(index) for step in range(len(log)) for index in log.indices(step)]


def test_the_samples_are_those_that_were_trained_on(tmp_path: Path) -> None:
    module = Module(network())
    fit(tmp_path, module, RecorderCallback(tmp_path / "run", model=module.net))
    trajectory = diffin.Trajectory.open(tmp_path / "run")
    assert torch.equal(torch.cat(module.seen), data().tensors[0][samples_of(trajectory)])
    assert (trajectory.total_steps, trajectory.dataset_size, trajectory.complete) == (12, SAMPLES, True)
    assert not trajectory.replay_obstacles()


@pytest.mark.parametrize("optim", ["sgd", "adamw"])
def test_scores_are_those_of_the_same_training_written_by_hand(tmp_path: Path, optim: str) -> None:
    module = Module(network(), optim)
    fit(tmp_path, module, RecorderCallback(tmp_path / "run", model=module.net))
    recorded = diffin.Trajectory.open(tmp_path / "run")
    train, net = data(), network()
    order = [log_of(recorded).indices(step).tolist() for step in range(12)]
    kind = torch.optim.SGD if optim == "sgd" else torch.optim.AdamW
    made = kind(net.parameters(), lr=0.05, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(made, 12)
    with diffin.Recorder(tmp_path / "hand", net, made, dataset_size=SAMPLES, total_steps=12) as recorder:
        for batch in order:
            for part in (batch[:3], batch[3:]):
                inputs, targets = train[part]
                (nn.functional.cross_entropy(net(inputs), targets) / 2).backward()
            recorder.clip_grad_norm_(0.5)
            made.step()
            recorder.accumulate(batch[:3])
            recorder.step(batch[3:])
            schedule.step()
            made.zero_grad()
    by_hand = diffin.Trajectory.open(tmp_path / "hand")
    np.testing.assert_allclose(log_of(recorded).learning_rates, log_of(by_hand).learning_rates, rtol=1e-12)
    np.testing.assert_allclose(log_of(recorded).clip_coefficients, log_of(by_hand).clip_coefficients, rtol=1e-10)
    assert (log_of(recorded).clip_coefficients < 1).any()
    task, query = Classification(net), data(9, seed=1)
    for estimator in (diffin.Replay(), diffin.Unrolled("steps", states=3), diffin.Unrolled("segments", rank=4)):
        found, wanted = (
            diffin.score(task, run, train, query=query, estimator=estimator, derivatives="forward", progress=False)
            for run in (recorded, by_hand)
        )
        scale = float(np.abs(wanted.influence).max())
        np.testing.assert_allclose(found.influence, wanted.influence, rtol=1e-6, atol=1e-7 * scale)


def test_recording_does_not_change_the_training(tmp_path: Path) -> None:
    recorded, alone = Module(network(0.2)), Module(network(0.2))
    fit(tmp_path, recorded, RecorderCallback(tmp_path / "run", model=recorded.net))
    fit(tmp_path, alone)
    for one, other in zip(recorded.parameters(), alone.parameters(), strict=True):
        assert torch.equal(one, other)


class Data(lightning.LightningDataModule):
    def train_dataloader(self) -> Any:
        return shuffled(data())


@pytest.mark.parametrize(
    "case", ["loader", "workers", "module", "datamodule", "indices", "reloaded", "whole module", "uneven", "limited"]
)
def test_dropout_and_samples_are_repeated_wherever_the_data_come_from(tmp_path: Path, case: str) -> None:
    net, settings, loader, read = network(0.2), {}, shuffled(data()), None
    if case == "workers":
        loader = shuffled(data(), num_workers=2, persistent_workers=True)
    if case == "indices":
        loader, read = shuffled(diffin.Indexed(data())), lambda batch: batch[2]
    if case == "reloaded":
        settings = {"reload_dataloaders_every_n_epochs": 1}
    if case == "uneven":
        settings = {"accumulate_grad_batches": 3}  # epochs end with a step of two micro-batches, divided by three
    if case == "limited":
        settings = {"limit_train_batches": 5}
    module = Module(net, loader=loader if case in ("module", "reloaded") else None)
    whole = case == "whole module"
    callback = RecorderCallback(tmp_path / "run", model=None if whole else net, indices=read)
    given = {"module": None, "reloaded": None, "datamodule": Data()}.get(case, loader)
    fit(tmp_path, module, callback, loader=given, **settings)
    trajectory = diffin.Trajectory.open(tmp_path / "run")
    train = data()
    assert torch.equal(torch.cat(module.seen), train.tensors[0][samples_of(trajectory)])
    rerun = Rerun(Classification(module if whole else net), trajectory, open_source(train))
    assert rerun.repeat(trajectory.initial, trajectory.final) < 1e-8


def test_a_resumed_training_is_recorded_on(tmp_path: Path) -> None:
    """From the end of the second epoch, after the third was recorded and lost."""
    saving = ModelCheckpoint(tmp_path / "saved", save_top_k=-1)
    module = Module(network(0.2))
    fit(tmp_path, module, RecorderCallback(tmp_path / "run", model=module.net), saving)
    kept = samples_of(diffin.Trajectory.open(tmp_path / "run"))
    again = Module(network(0.2))
    saved = tmp_path / "saved" / "epoch=1-step=8.ckpt"
    fit(tmp_path, again, RecorderCallback(tmp_path / "run", model=again.net), ckpt_path=saved)
    trajectory = diffin.Trajectory.open(tmp_path / "run")
    assert (trajectory.total_steps, trajectory.complete) == (12, True)
    seen = data().tensors[0][samples_of(trajectory)[2 * SAMPLES :]]
    assert samples_of(trajectory)[: 2 * SAMPLES] == kept[: 2 * SAMPLES]
    assert torch.equal(torch.cat(again.seen), seen)
    rerun = Rerun(Classification(again.net), trajectory, open_source(data()))
    assert rerun.repeat(trajectory.initial, trajectory.final) < 1e-8
    with pytest.raises(RecordingError, match="does not exist"):
        fit(tmp_path, Module(network()), RecorderCallback(tmp_path / "other"), ckpt_path=saved)


def test_autocast_is_an_obstacle_and_segments_do_without(tmp_path: Path) -> None:
    module = Module(network())
    fit(tmp_path, module, RecorderCallback(tmp_path / "run", model=module.net), precision="bf16-mixed")
    trajectory = diffin.Trajectory.open(tmp_path / "run")
    assert "bf16-mixed" in trajectory.replay_obstacles()[0]
    task = Classification(module.net)
    scores = diffin.score(
        task, trajectory, data(), query=data(9, seed=1), estimator=diffin.Unrolled("segments"), progress=False
    )
    assert np.isfinite(scores.influence).all()


class Manual(Module):
    def __init__(self) -> None:
        super().__init__(network())
        self.automatic_optimization = False


class OwnClipping(Module):
    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        return None


@pytest.mark.parametrize(
    ("module", "settings", "sentence"),
    [
        (Manual, {"accumulate_grad_batches": 1, "gradient_clip_val": None}, "automatic optimization"),
        (lambda: OwnClipping(network()), {}, "configure_gradient_clipping"),
        (lambda: Module(network()), {"gradient_clip_algorithm": "value"}, "clipping by value"),
    ],
)
def test_what_cannot_be_recorded_is_refused_before_the_first_step(
    tmp_path: Path, module: Any, settings: Any, sentence: str
) -> None:
    with pytest.raises(RecordingError, match=sentence):
        fit(tmp_path, module(), RecorderCallback(tmp_path / "run"), **settings)


def test_a_batch_of_another_size_than_was_drawn_is_refused(tmp_path: Path) -> None:
    def halved(samples: list[Any]) -> Any:
        return torch.utils.data.default_collate(samples[:2])

    module = Module(network())
    with pytest.raises(RecordingError, match="indices="):
        fit(
            tmp_path,
            module,
            RecorderCallback(tmp_path / "run", model=module.net),
            loader=shuffled(data(), collate_fn=halved),
        )


def test_a_failed_training_leaves_a_readable_recording(tmp_path: Path) -> None:
    class Fails(Module):
        def training_step(self, batch: Any, number: int) -> Tensor:
            if len(self.seen) == 12:
                raise ValueError("broken")
            return super().training_step(batch, number)

    loader = shuffled(data())
    module = Fails(network())
    with pytest.raises(ValueError, match="broken"):
        fit(tmp_path, module, RecorderCallback(tmp_path / "run", model=module.net), loader=loader)
    trajectory = diffin.Trajectory.open(tmp_path / "run")
    assert (trajectory.total_steps, trajectory.complete) == (6, False)
    assert type(loader.batch_sampler) is torch.utils.data.BatchSampler
    assert not module.net._forward_hooks


def test_the_older_name_of_the_package_is_recorded_as_well(tmp_path: Path) -> None:
    older = pytest.importorskip("pytorch_lightning")
    assert issubclass(RecorderCallback, older.Callback)
    assert issubclass(RecorderCallback, lightning.Callback)
