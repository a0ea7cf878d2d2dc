"""Trainings with contrastive losses: replayed, unrolled, repeated without a pair, against loops over pairs in float64."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

import diffin
from contrastive_training import TRAININGS, PairTraining, pairs
from diffin.derivatives import Forward
from diffin.errors import EvaluationError
from diffin.estimators.build import query_reader
from diffin.evaluation import leave_one_out
from diffin.loss_checks import check_losses
from diffin.rerun import Rerun
from diffin.rerun.many import choose_manner, final_states
from diffin.sources import open_source
from diffin.task import PerSampleLoss, frozen
from diffin.tasks import Contrastive, TwoTowers
from training import record

EXACT = diffin.Replay(saturation=0.0)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", TRAININGS)
def test_replay_is_the_derivative_of_training_with_another_weight(name: str, tmp_path: Path) -> None:
    training = TRAININGS[name]()
    task, trajectory = training.recorded(tmp_path / "run")
    scores = diffin.score(task, trajectory, training.train, query=training.query, estimator=EXACT, progress=False)
    h, wanted = 1e-5, []
    for pair in range(5):
        ends = []
        for sign in (1, -1):
            weights = torch.ones(training.size, dtype=torch.float64)
            weights[pair] += sign * h
            ends.append(training.query_loss(weights))
        wanted.append((ends[0] - ends[1]) / (2 * h))
    np.testing.assert_allclose(scores.influence[:5], wanted, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", TRAININGS)
def test_trainings_without_a_pair_have_it_neither_as_positive_nor_as_negative(name: str, tmp_path: Path) -> None:
    training = TRAININGS[name]()
    task, trajectory = training.recorded(tmp_path / "run")
    rerun = Rerun(task, trajectory, open_source(training.train))
    weights = torch.ones(4, training.size, dtype=torch.float64)
    weights[1, 3], weights[2, 5], weights[3, 9:12] = 0, 0.5, 0
    with rerun.entered():
        manner = choose_manner(rerun)
        states = list(final_states(rerun, weights, manner))
    assert manner.method == "vmap", manner
    for state, own in zip(states, weights, strict=True):
        for parameter, tensor in training.run(own).named_parameters():
            torch.testing.assert_close(state.parameters[parameter], tensor.detach(), rtol=1e-8, atol=1e-10)


def test_leave_one_out_asks_the_query_in_groups(tmp_path: Path) -> None:
    training = PairTraining()
    task, trajectory = training.recorded(tmp_path / "run")
    longer = TensorDataset(*(torch.cat([t, t[:2]]) for t in training.query.tensors))  # two that fill no group
    truth = leave_one_out(task, trajectory, training.train, longer, samples=[0, 7], progress=False)
    wanted = []
    for pair in (0, 7):
        weights = torch.ones(training.size, dtype=torch.float64)
        weights[pair] = 0
        wanted.append(training.query_loss() - training.query_loss(weights))
    np.testing.assert_allclose(truth.influence, wanted, rtol=1e-6)
    with pytest.raises(EvaluationError, match="12"):
        leave_one_out(task, trajectory, training.train, longer, samples=[0], query_samples=[12], progress=False)


def test_a_query_is_read_in_whole_groups_in_order(caplog: pytest.LogCaptureFixture) -> None:
    task = Contrastive(PairTraining().model(), group_size=8)
    for count, sizes, left in ((20, [8, 8], True), (16, [8, 8], False), (5, [5], False)):
        caplog.clear()
        dataset = pairs(count)
        read = query_reader(task, open_source(dataset), 4)
        for _ in range(2):
            found = list(read())
            assert [len(images) for images, _ in found] == sizes
            torch.testing.assert_close(torch.cat([b[0] for b in found]), dataset.tensors[0][: sum(sizes)])
        assert ("do not fill a group" in caplog.text) == left
        streamed = [len(b[0]) for b in query_reader(task, open_source(_Once(dataset)), 4)()]
        assert streamed == sizes


class _Once:
    """Can be read in order only, and does not know its length."""

    def __init__(self, dataset: TensorDataset) -> None:
        self._dataset = dataset

    def __iter__(self) -> Iterator[Any]:
        return iter([self._dataset[i] for i in range(len(self._dataset))])


def test_the_learned_temperature_is_a_parameter_like_others(tmp_path: Path) -> None:
    training = PairTraining()
    task, trajectory = training.recorded(tmp_path / "run")
    options = {"query": training.query, "estimator": diffin.TracIn(), "progress": False}
    probes = diffin.build_probes(task, trajectory, training.train, parameters="logit_scale", **options)
    assert probes.parameters == ("logit_scale",)
    checkpoint = probes.load(0)
    batch = training.train.tensors
    with frozen(task.model):
        loss = PerSampleLoss(task, checkpoint.state, "logit_scale")
        found = Forward().prepare(loss, checkpoint.probes[0])(batch).derivatives
        h, ends = 1e-5, []
        for sign in (1, -1):
            moved = {"logit_scale": loss.parameters["logit_scale"] + sign * h * checkpoint.probes[0].u["logit_scale"]}
            ends.append(loss.outcome(moved, batch).effects())
    torch.testing.assert_close(found, (ends[0] - ends[1]) / (2 * h), rtol=1e-5, atol=1e-9)
    assert float(found.abs().max()) > 0


def test_a_training_under_autocast_is_repeated_as_it_was(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model = PairTraining().model().float()
    dataset, query = (TensorDataset(d.tensors[0].float(), d.tensors[1]) for d in (pairs(18, 1), pairs(12, 2)))
    task = Contrastive(model, group_size=6, autocast=torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    trajectory = record(tmp_path / "run", task, dataset, steps=10, batch_size=6, optimizer=optimizer)
    scores = diffin.score(task, trajectory, dataset, query=query, estimator=diffin.Replay(), progress=False)
    assert scores.metadata["probes"]["metadata"]["replay_distance"] < 1e-3
    unrolled = diffin.Unrolled(propagation="steps", states=2)
    scores = diffin.score(task, trajectory, dataset, query=query, estimator=unrolled, progress=False)
    assert scores.metadata["probes"]["metadata"]["estimator"]["hessian"] == "exact"
    assert scores.metadata["derivatives"]["name"] == "forward"
    assert "coupled losses" not in caplog.text
    task.group_size = 9
    diffin.build_probes(task, trajectory, dataset, query=query, estimator=diffin.TracIn(), progress=False)
    assert "of 6 samples together, and the task takes those of 9" in caplog.text


class OneHot(nn.Module):
    """Int64[Tensor, "B"] to Float64[Tensor, "B 12"]: a text of one word, its case and its language."""

    def forward(self, words: Tensor) -> Tensor:
        return nn.functional.one_hot(words, 12).double()


def digits() -> tuple[TensorDataset, TensorDataset]:
    """Digits with the number of their name; a fifth of the names in training are wrong."""
    images, names = load_digits(return_X_y=True)
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(images), generator=generator)[:240]
    x, y = torch.tensor(images)[order] / 16, torch.tensor(names, dtype=torch.long)[order]
    y[:160:5] = torch.randint(10, (32,), generator=generator)
    return TensorDataset(x[:160], y[:160]), TensorDataset(x[160:], y[160:])


def digit_training(path: Path, batch_size: int, steps: int) -> tuple[Contrastive, diffin.Trajectory]:
    torch.manual_seed(0)
    images = nn.Sequential(nn.Linear(64, 24), nn.GELU(), nn.Linear(24, 8))
    towers = TwoTowers(images, nn.Sequential(OneHot(), nn.Linear(12, 8))).double()
    task = Contrastive(towers, group_size=batch_size)
    optimizer = torch.optim.AdamW(towers.parameters(), lr=3e-3)
    train = digits()[0]
    return task, record(path, task, train, steps=steps, batch_size=batch_size, checkpoints=8, optimizer=optimizer)


@pytest.mark.slow
@pytest.mark.parametrize(("propagation", "least"), [("steps", 0.9), ("segments", 0.85)])
def test_unrolled_ranks_pairs_as_replay_does(propagation: Any, least: float, tmp_path: Path) -> None:
    train, query = digits()
    task, trajectory = digit_training(tmp_path / "run", 40, 120)
    replayed, unrolled = (
        diffin.score(task, trajectory, train, query=query, estimator=estimator, progress=False).influence
        for estimator in (diffin.Replay(), diffin.Unrolled(propagation=propagation))
    )
    agreement = spearmanr(replayed, unrolled).statistic
    assert agreement > least, agreement


def test_probes_of_every_step_are_a_replay_where_a_batch_is_all_pairs(tmp_path: Path) -> None:
    """The adjoint, the effects and the groups fit together without an approximation between them."""
    train, query = digits()
    task, trajectory = digit_training(tmp_path / "run", len(train), 12)
    every_step = diffin.Unrolled(propagation="steps", states=1000, hessian="exact")
    options = {"query": query, "derivatives": "forward", "progress": False}
    replayed = diffin.score(task, trajectory, train, estimator=EXACT, **options).influence
    unrolled = diffin.score(task, trajectory, train, estimator=every_step, **options).influence
    assert np.linalg.norm(unrolled - replayed) < 1e-3 * np.linalg.norm(replayed)  # but for saturated updates


class Pairs(Dataset[Any]):
    """What a processor of Hugging Face makes of pictures and captions."""

    def __init__(self, count: int) -> None:
        generator = torch.Generator().manual_seed(1)
        self.pixels = torch.randn(count, 3, 16, 16, generator=generator)
        self.tokens = torch.randint(3, 30, (count, 6), generator=generator)
        self.tokens[:, -1] = 31  # the end of a text

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        mask = torch.ones(6, dtype=torch.long)
        return {"pixel_values": self.pixels[index], "input_ids": self.tokens[index], "attention_mask": mask, "url": "x"}


def hugging_face(kind: str) -> nn.Module:
    import transformers as hf

    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**small, "vocab_size": 32, "max_position_embeddings": 6, "bos_token_id": 0, "eos_token_id": 31}
    vision = {**small, "image_size": 16, "patch_size": 8}
    torch.manual_seed(0)
    if kind == "clip":
        return hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    model = hf.SiglipModel(hf.SiglipConfig(text_config=text, vision_config=vision))
    with torch.no_grad():
        model.logit_scale.fill_(2.0)
        model.logit_bias.fill_(-3.0)
    return model


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed")
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_models_of_hugging_face_are_scored_end_to_end(kind: Any, tmp_path: Path) -> None:
    dataset = Pairs(22)
    task = Contrastive(hugging_face(kind), loss=kind, group_size=8)
    batch = torch.utils.data.default_collate([dataset[i] for i in range(8)])
    check_losses(task, batch)
    named = {name: tensor for name, tensor in batch.items() if name != "url"}
    own = task.model.eval()(**named, return_loss=True).loss
    torch.testing.assert_close(task.losses(batch).mean().float(), own, rtol=1e-5, atol=1e-6)
    pair = (batch["pixel_values"], {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]})
    torch.testing.assert_close(task.losses(pair), task.losses(batch))
    task.model.train()
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=1e-3)
    with diffin.Recorder(tmp_path / "run", task.model, optimizer, dataset_size=22, total_steps=6) as recorder:
        for step in range(6):
            rows = torch.randperm(22, generator=torch.Generator().manual_seed(step))[:8]
            task.losses(torch.utils.data.default_collate([dataset[int(i)] for i in rows])).mean().backward()
            optimizer.step()
            recorder.step(rows)
            optimizer.zero_grad()
    trajectory = diffin.Trajectory.open(tmp_path / "run")
    scores = [
        diffin.score(
            task, trajectory, dataset, query=Pairs(8), estimator=estimator, derivatives=derivatives, progress=False
        )
        for estimator, derivatives in [
            (diffin.Unrolled(propagation="steps", states=2), "forward"),
            (diffin.Unrolled(propagation="steps", states=2), "difference"),
            (diffin.Replay(), "auto"),
        ]
    ]
    assert all(np.isfinite(one.influence).all() and len(one) == 22 for one in scores)
    error = np.linalg.norm(scores[1].influence - scores[0].influence) / np.linalg.norm(scores[0].influence)
    assert error < 0.05, error
