"""A recorded ``transformers.Trainer`` is the training that it would have been, and what it records is what it did."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import SAMPLES, Sentences, Texts, arguments, classifier, language_model, trainer
from torch import nn
from torch.utils.data import IterableDataset
from transformers import BertForMaskedLM, BertForSequenceClassification, get_linear_schedule_with_warmup

import diffin
from diffin.errors import RecordingError, TrajectoryError
from diffin.integrations.hugging_face import RecorderCallback
from diffin.rerun import Rerun
from diffin.sources import open_source
from diffin.tasks import Classification, LanguageModel, Regression
from diffin.trajectory import StepLog


def record(tmp_path: Path, model: nn.Module, data: Any, **settings: Any) -> diffin.Trajectory:
    """Train with the Trainer, accumulating two micro-batches and clipping, and open what was recorded."""
    more = {key: settings.pop(key) for key in ("data_collator",) if key in settings}
    args = arguments(tmp_path / "out", **settings)
    trainer(model, args, data, RecorderCallback(tmp_path / "run"), **more).train()
    assert args.max_grad_norm == settings.get("max_grad_norm", 0.8)
    return diffin.Trajectory.open(tmp_path / "run")


def log_of(trajectory: diffin.Trajectory) -> StepLog:
    assert trajectory.steps is not None
    return trajectory.steps


def samples_of(trajectory: diffin.Trajectory) -> list[int]:
    log = log_of(trajectory)
    return [int(index) for step in range(len(log)) for index in log.indices(step)]


def hand_written(
    path: Path, model: nn.Module, data: Sentences, order: list[list[int]], optim: str
) -> diffin.Trajectory:
    """The training of :func:`record` without the Trainer: three epochs of micro-batches of three, two to a step."""
    decayed = [p for name, p in model.named_parameters() if "bias" not in name and "LayerNorm" not in name]
    others = [p for name, p in model.named_parameters() if "bias" in name or "LayerNorm" in name]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    made = torch.optim.SGD(groups, lr=0.05) if optim == "sgd" else torch.optim.AdamW(groups, lr=0.05)
    steps = len(order)
    schedule = get_linear_schedule_with_warmup(made, 3, steps)
    model.train()
    with diffin.Recorder(path, model, made, dataset_size=len(data), total_steps=steps) as recorder:
        for batch in order:
            parts = [torch.tensor(part) for part in (batch[:3], batch[3:]) if part]
            for part in parts:
                # The loss of this model does not heed how many samples the step has: a sum of means.
                model(input_ids=data.tokens[part], labels=data.labels[part]).loss.backward()
            recorder.clip_grad_norm_(0.8)
            made.step()
            for part in parts[:-1]:
                recorder.accumulate(part)
            recorder.step(parts[-1], divisors=[len(part) for part in parts])
            schedule.step()
            made.zero_grad()
    return diffin.Trajectory.open(path)


@pytest.mark.parametrize("optim", ["sgd", "adamw_torch"])
def test_scores_are_those_of_the_same_training_written_by_hand(tmp_path: Path, optim: str) -> None:
    data = Sentences()
    model = classifier()
    recorded = record(tmp_path, model, data, optim=optim, weight_decay=0.1)
    assert data.asked == samples_of(recorded)
    assert sorted(data.asked[:SAMPLES]) == list(range(SAMPLES)) != data.asked[:SAMPLES]
    order = [log_of(recorded).indices(step).tolist() for step in range(12)]
    assert [len(batch) for batch in order] == [6, 6, 6, 4] * 3
    by_hand = hand_written(tmp_path / "hand", classifier(), data, order, optim)
    np.testing.assert_array_equal(log_of(recorded).learning_rates, log_of(by_hand).learning_rates)
    np.testing.assert_allclose(log_of(recorded).clip_coefficients, log_of(by_hand).clip_coefficients, rtol=1e-10)
    assert (log_of(recorded).clip_coefficients < 1).any()
    for one, other in zip(recorded.stored, by_hand.stored, strict=True):
        for name, tensor in one.parameters.items():
            torch.testing.assert_close(tensor, other.parameters[name], rtol=1e-9, atol=1e-11)
    task, query = Classification(model), Sentences(9, seed=1)
    for estimator in (diffin.Unrolled("steps", states=2), diffin.Unrolled("segments", rank=3)):
        found, wanted = (
            diffin.score(task, run, data, query=query, estimator=estimator, derivatives="forward", progress=False)
            for run in (recorded, by_hand)
        )
        scale = float(np.abs(wanted.influence).max())
        np.testing.assert_allclose(found.influence, wanted.influence, rtol=1e-7, atol=1e-8 * scale)


@pytest.mark.parametrize("settings", [{}, {"gradient_accumulation_steps": 1, "max_grad_norm": 0.0, "bf16": True}])
def test_recording_does_not_change_the_training(tmp_path: Path, settings: dict[str, Any]) -> None:
    model, alone = classifier(0.1), classifier(0.1)
    record(tmp_path, model, Sentences(), **settings)
    trainer(alone, arguments(tmp_path / "alone", **settings), Sentences()).train()
    for one, other in zip(model.parameters(), alone.parameters(), strict=True):
        assert torch.equal(one, other)


def test_dropout_and_the_scale_of_the_loss_are_repeated(tmp_path: Path) -> None:
    data, model = Sentences(), classifier(0.2)
    trajectory = record(tmp_path, model, data)
    rerun = Rerun(Classification(model), trajectory, open_source(data))
    assert rerun.repeat(trajectory.initial, trajectory.final) < 1e-8


def test_a_mean_over_tokens_is_repeated_by_sums_and_refused_for_means(tmp_path: Path) -> None:
    data, model = Texts(ragged=True), language_model()
    trajectory = record(tmp_path, model, data, max_steps=6)
    with pytest.raises(TrajectoryError, match="reduction='sum'"):
        Rerun(LanguageModel(model), trajectory, open_source(data))
    scores = [
        diffin.score(
            LanguageModel(model, reduction="sum", divisor=divisor),
            trajectory,
            data,
            query=data,
            estimator=diffin.Replay(),
            progress=False,
        ).influence
        for divisor in (1.0, 4.0)
    ]
    # The effect of a sample is the same, whatever its loss and that of the query are expressed in.
    np.testing.assert_allclose(scores[0], 4 * scores[1], rtol=1e-4)
    diffin.score(
        LanguageModel(model),
        trajectory,
        data,
        query=data,
        estimator=diffin.Unrolled("segments", rank=2),
        progress=False,
    )


def test_where_all_samples_have_as_many_tokens_means_do(tmp_path: Path) -> None:
    data, model = Texts(ragged=False), language_model()
    trajectory = record(tmp_path, model, data, optim="sgd")
    assert log_of(trajectory).items_per_sample() == 5
    assert Rerun(LanguageModel(model), trajectory, open_source(data)).repeat(*trajectory.stored[:2]) < 1e-5


class Regressions(Sentences):
    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": self.tokens[index], "labels": self.tokens[index].double().mean()[None]}


class Masked(Sentences):
    """Some tokens, more or fewer, are to be found."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        hidden = self.tokens[index] > 6
        hidden[0] = True
        return {
            "input_ids": self.tokens[index].masked_fill(hidden, 0),
            "labels": self.tokens[index].masked_fill(~hidden, -100),
        }


class Own(nn.Module):
    """Takes no further keyword arguments: the Trainer divides its loss by the number of micro-batches."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.net = nn.Sequential(nn.Embedding(16, 4), nn.Flatten(), nn.Linear(24, 2)).double()

    def forward(self, input_ids: Any, labels: Any = None) -> Any:
        logits = self.net(input_ids)
        return logits if labels is None else {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def masked_model() -> nn.Module:
    torch.manual_seed(3)
    return BertForMaskedLM(classifier().config).double()


def regressor() -> nn.Module:
    torch.manual_seed(3)
    config = classifier().config
    config.num_labels, config.problem_type = 1, "regression"
    return BertForSequenceClassification(config).double()


@pytest.mark.parametrize(
    ("made", "data", "task"),
    [
        (regressor, Regressions(), Regression),
        (masked_model, Masked(), lambda m: LanguageModel(m, kind="masked", reduction="sum", divisor=3.0)),
        (Own, Sentences(), Classification),
    ],
)
def test_the_objective_of_other_models_is_known(tmp_path: Path, made: Any, data: Any, task: Any) -> None:
    model = made()
    trajectory = record(tmp_path, model, data, max_steps=6, learning_rate=0.01)
    rerun = Rerun(task(model), trajectory, open_source(data))
    # The library takes some losses in float32.
    assert rerun.repeat(trajectory.initial, trajectory.final) < 1e-5


def test_a_resumed_training_is_recorded_like_one_that_never_stopped(tmp_path: Path) -> None:
    """In the middle of the second epoch, after more was recorded than the Trainer goes on from."""
    settings = {"save_strategy": "steps", "save_steps": 6}
    whole = record(tmp_path / "whole", classifier(0.1), Sentences(), **settings)

    class Killed(Exception):
        pass

    class Kill(RecorderCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
            super().on_step_end(args, state, control, **parts)
            if state.global_step == 8:
                raise Killed

    folder = tmp_path / "killed"
    with pytest.raises(Killed):
        trainer(classifier(0.1), arguments(folder / "out", **settings), Sentences(), Kill(folder / "run")).train()
    args = arguments(folder / "out", **settings)
    again = trainer(classifier(0.1), args, Sentences(), RecorderCallback(folder / "run"))
    again.train(resume_from_checkpoint=str(folder / "out" / "checkpoint-6"))
    resumed = diffin.Trajectory.open(folder / "run")
    assert resumed.complete
    assert samples_of(resumed) == samples_of(whole)
    np.testing.assert_allclose(log_of(resumed).learning_rates, log_of(whole).learning_rates, rtol=1e-12)
    for name, tensor in whole.final.parameters.items():
        torch.testing.assert_close(resumed.final.parameters[name], tensor, rtol=1e-9, atol=1e-11)
    assert not resumed.replay_obstacles()
    rerun = Rerun(Classification(classifier(0.1)), resumed, open_source(Sentences()))
    assert rerun.repeat(resumed.initial, resumed.final) < 1e-8


def test_going_on_without_a_recording_is_refused(tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 6}
    trainer(classifier(), arguments(tmp_path, **settings), Sentences()).train()
    again = trainer(classifier(), arguments(tmp_path, **settings), Sentences(), RecorderCallback(tmp_path / "run"))
    with pytest.raises(RecordingError, match="does not exist"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))


def test_the_final_state_is_the_last_not_the_best(tmp_path: Path) -> None:
    args = arguments(
        tmp_path / "out",
        save_strategy="steps",
        save_steps=4,
        eval_strategy="steps",
        eval_steps=4,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=True,
    )
    model = classifier()
    made = trainer(model, args, Sentences(), RecorderCallback(tmp_path / "run"), eval_dataset=Sentences(9, seed=1))
    made.train()
    assert made.state.best_global_step == 4
    trajectory = diffin.Trajectory.open(tmp_path / "run")
    assert trajectory.complete
    assert trajectory.final.step == 12
    last = torch.load(tmp_path / "out" / "checkpoint-12" / "optimizer.pt", weights_only=True)
    first = next(iter(trajectory.optimizer.groups[0].names))
    assert torch.equal(trajectory.final.optimizer_state[first]["exp_avg_sq"], last["state"][0]["exp_avg_sq"])
    assert not torch.equal(trajectory.final.parameters[first], dict(model.named_parameters())[first])


def test_an_adapter_is_recorded_and_scored(tmp_path: Path) -> None:
    model = get_peft_model(classifier(), LoraConfig(r=2, target_modules=["query", "value"], task_type="SEQ_CLS"))
    data = Sentences()
    trajectory = record(tmp_path, model, data)
    assert all("lora" in name or "classifier" in name for group in trajectory.optimizer.groups for name in group.names)
    rerun = Rerun(Classification(model), trajectory, open_source(data))
    assert rerun.repeat(trajectory.initial, trajectory.final) < 1e-6
    scores = diffin.score(
        Classification(model),
        trajectory,
        data,
        query=Sentences(9, seed=1),
        estimator=diffin.Unrolled("steps", states=2),
        progress=False,
    )
    assert np.isfinite(scores.influence).all()
    assert scores.influence.std() > 0


def test_autocast_is_an_obstacle_and_segments_do_without(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = classifier().float()
    data = Sentences()
    trajectory = record(tmp_path, model, data, bf16=True)
    assert "bfloat16" in trajectory.replay_obstacles()[0]
    with caplog.at_level(logging.WARNING):
        scores = diffin.score(
            Classification(model),
            trajectory,
            data,
            query=Sentences(9, seed=1),
            estimator=diffin.Unrolled(rank=2),
            derivatives="forward",
            progress=False,
        )
    assert "goes by segments" in caplog.text
    assert np.isfinite(scores.influence).all()


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        yield from (Sentences()[index] for index in range(SAMPLES))


def test_of_a_stream_the_steps_are_recorded_without_samples(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    args = arguments(tmp_path / "out", max_steps=6)
    with pytest.raises(RecordingError, match="dataset_size="):
        trainer(classifier(), args, Stream(), RecorderCallback(tmp_path / "run")).train()
    trainer(classifier(), args, Stream(), RecorderCallback(tmp_path / "run", dataset_size=SAMPLES)).train()
    assert "cannot be known" in caplog.text
    trajectory = diffin.Trajectory.open(tmp_path / "run")
    assert trajectory.total_steps == 6
    assert "samples of 6 of 6 steps" in trajectory.replay_obstacles()[0]


def test_what_cannot_be_recorded_is_refused_before_the_first_step(tmp_path: Path) -> None:
    args = arguments(tmp_path / "out", auto_find_batch_size=True)
    with pytest.raises(RecordingError, match="auto_find_batch_size"):
        trainer(classifier(), args, Sentences(), RecorderCallback(tmp_path / "run")).train()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "something").touch()
    with pytest.raises(RecordingError, match="not empty"):
        trainer(classifier(), arguments(tmp_path / "out"), Sentences(), RecorderCallback(tmp_path / "run")).train()


def test_a_failed_training_leaves_nothing_behind(tmp_path: Path) -> None:
    """Notebook: the same arguments, model and callback, once more."""
    data = Sentences()
    model, args = classifier(), arguments(tmp_path / "out")
    callback = RecorderCallback(tmp_path / "run")

    def fails(_: Any, __: Any, ___: Any) -> None:
        raise KeyboardInterrupt

    handle = model.classifier.register_forward_hook(fails)
    with pytest.raises(KeyboardInterrupt):
        trainer(model, args, data, callback).train()
    handle.remove()
    callback.path = tmp_path / "again"
    trainer(model, args, data, callback).train()
    assert args.max_grad_norm == 0.8
    assert not model._forward_pre_hooks
    assert not model._forward_hooks
    assert diffin.Trajectory.open(tmp_path / "again").complete
