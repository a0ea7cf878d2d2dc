"""Language models and adapters: gradients of every sequence from hooks alone, and every question about an adapter alone."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import diffin
from cases import Dense
from diffin.derivatives.per_sample import PerSampleGradients
from diffin.task import PerSampleLoss, Task, frozen
from diffin.tasks import Classification, LanguageModel

pytest.importorskip("transformers")
pytest.importorskip("peft")

from small_language_models import adapted, bert, gpt2, labelled, padded, padded_left, sequences, train

ROWS, QUERY = sequences(12, seed=1), sequences(6, seed=2)
SEGMENTS = diffin.Unrolled(propagation="segments", rank=40, curvature_samples=None, hessian="exact")

MODELS: dict[str, Callable[[], tuple[Task, Any]]] = {
    "gpt2": lambda: (LanguageModel(gpt2(layers=2)), padded_left(ROWS[:5])),
    "masked bert": lambda: (
        LanguageModel(bert("masked"), kind="masked"),
        {
            **padded(ROWS[:5]),
            "labels": padded(ROWS[:5])["input_ids"].masked_fill(padded(ROWS[:5])["input_ids"] < 4, -100),
        },
    ),
    "bert classifier": lambda: (Classification(bert("classifier")), labelled(ROWS[:5])),
    "gpt2 with adapters": lambda: (
        LanguageModel(adapted(gpt2(), "c_attn", "c_fc", fan_in_fan_out=True)),
        padded(ROWS[:5]),
    ),
    "bert with adapters": lambda: (Classification(adapted(bert("classifier"), "query", "value")), labelled(ROWS[:5])),
}


@pytest.mark.parametrize("even", [False, True], ids=["odd", "even"])
@pytest.mark.parametrize("name", MODELS)
def test_hooks_alone_give_the_gradient_of_every_sequence(
    name: str, even: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever the length: positions have ids of shape (1, T), which an even T could share out among samples, wrongly."""
    task, batch = MODELS[name]()
    length = 6 if even else 5
    batch = {key: t[:, :length] if t.ndim == 2 else t for key, t in batch.items()}
    with frozen(task.model), caplog.at_level(logging.INFO, "diffin"):
        loss = PerSampleLoss(task)
        dense = Dense(loss)
        gradients = PerSampleGradients(loss)
        rows, sums = dict(gradients.rows(batch)[1]), gradients.sums(batch)
        for index in range(5):
            wanted = dense.gradient(dense.sample(batch, index))
            found = dense.flatten({parameter: row[index] for parameter, row in rows.items()})
            torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(sums.squares[index], wanted.square().sum(), rtol=1e-9, atol=0.0)
    assert "no hook sees" not in caplog.text


def build() -> Task:
    return LanguageModel(adapted(gpt2(width=4), "c_attn", fan_in_fan_out=True))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Task, diffin.Trajectory]:
    folder = tmp_path_factory.mktemp("run")
    train(build(), ROWS, padded, record=folder)
    return build(), diffin.Trajectory.open(folder)


def first_order(run: tuple[Task, diffin.Trajectory]) -> list[tuple[float, dict[str, Tensor]]]:
    """At every checkpoint the rate times T / (m N), and all gradients by parameter, Float64[Tensor, "N *shape"]."""
    task, trajectory = run
    found = []
    for checkpoint in trajectory.checkpoints:
        with frozen(task.model):
            loss = PerSampleLoss(task, checkpoint.state)
            dense = Dense(loss)
            each = [dense.unflatten(dense.gradient(padded([row]))) for row in ROWS]
        share = trajectory.total_steps / len(trajectory.checkpoints) / len(ROWS)
        found.append(
            (share * float(checkpoint.learning_rate), {n: torch.stack([g[n] for g in each]) for n in loss.names})
        )
    return found


def test_what_is_frozen_has_no_probes(run: tuple[Task, diffin.Trajectory]) -> None:
    options: dict[str, Any] = {"collate": padded, "progress": False}
    probes = diffin.build_probes(*run, ROWS, query=QUERY, estimator=diffin.TracIn(), **options)
    assert all("lora_" in name for name in probes.parameters)
    assert len(probes.parameters) == 2
    for checkpoint in probes:
        assert all(set(probe.u) == set(probes.parameters) for probe in checkpoint.probes)


def test_self_influence_of_an_adapter_is_its_dense_gradients(run: tuple[Task, diffin.Trajectory]) -> None:
    found = diffin.self_influence(*run, ROWS, estimator=diffin.TracIn(), collate=padded, progress=False).influence
    wanted = sum(-share * sum(g.square().flatten(1).sum(1) for g in rows.values()) for share, rows in first_order(run))
    torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=1e-9, atol=0)


def test_self_influence_along_the_training_is_each_sequence_as_the_query(run: tuple[Task, diffin.Trajectory]) -> None:
    options: dict[str, Any] = {"estimator": SEGMENTS, "collate": padded, "progress": False}
    found = diffin.self_influence(*run, ROWS, rank=40, **options).influence
    asked = diffin.score(*run, ROWS, query=[ROWS[7]], derivatives="ghost", **options).influence
    assert found[7] == pytest.approx(asked[7], rel=1e-5)


def test_the_change_of_an_adapter_is_that_of_its_dense_gradients(run: tuple[Task, diffin.Trajectory]) -> None:
    samples = [1, 4, 5]
    options: dict[str, Any] = {"collate": padded, "progress": False}
    found = diffin.parameter_influence(*run, ROWS, samples, estimator=diffin.TracIn(), **options)
    terms = first_order(run)
    assert set(found.vector) == set(terms[0][1])
    for name, moved in found.vector.items():
        wanted = sum(-share * rows[name][samples].sum(0) for share, rows in terms)
        torch.testing.assert_close(moved, wanted, rtol=1e-9, atol=1e-15)
    along = diffin.parameter_influence(*run, ROWS, samples, estimator=SEGMENTS, **options)
    scored = diffin.score(*run, ROWS, query=QUERY, estimator=SEGMENTS, derivatives="ghost", **options)
    assert along.on(run[0], QUERY, collate=padded) == pytest.approx(np.sum(scored.influence[samples]), rel=1e-5)
