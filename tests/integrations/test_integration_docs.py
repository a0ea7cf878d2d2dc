"""The examples of the page on integrations, run as they stand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_lightning_trainer
import torch
from tiny_models import Sentences, classifier
from torch.utils.data import TensorDataset

import diffin

PAGE = Path(__file__).parents[2] / "docs" / "integrations.md"


def test_the_examples_run_as_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    hugging_face, lightning, accelerate, finished = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    settings = 'TrainingArguments("out", use_cpu=True, save_steps=2, report_to="none", '
    first: dict[str, Any] = {
        "diffin": diffin,
        "model": classifier(),
        "train": Sentences(),
        "validation": Sentences(9, seed=1),
    }
    exec(hugging_face.replace('TrainingArguments("out", ', settings), first)
    module = test_lightning_trainer.Module(test_lightning_trainer.network())
    data = test_lightning_trainer.data()
    second: dict[str, Any] = {
        "diffin": diffin,
        "module": module,
        "loader": torch.utils.data.DataLoader(data, 3, shuffle=True),
        "train": data,
        "validation": test_lightning_trainer.data(9, seed=1),
    }
    exec(lightning.replace("max_epochs=3", 'max_epochs=3, accelerator="cpu", logger=False'), second)
    third = _accelerated(data)
    exec(accelerate.replace("Accelerator(", "Accelerator(cpu=True, "), third)
    fourth = {name: first[name] for name in ("diffin", "model", "task", "train", "validation")}
    exec(finished, fourth)
    for space in (first, second, third, fourth):
        assert np.isfinite(space["scores"].influence).all()
        assert space["scores"].influence.std() > 0
    # The same loop in plain PyTorch: what is recorded does not show who ran it.
    plain = _accelerated(data)
    with diffin.Recorder(
        "runs/d", plain["model"], plain["optimizer"], dataset_size=len(data), total_steps=plain["steps"]
    ) as recorder:
        for number, (inputs, targets, samples) in enumerate(plain["batches"]):
            (plain["loss"](plain["model"](inputs), targets) / 2).backward()
            if number % 2 == 0:
                recorder.accumulate(samples)
                continue
            recorder.clip_grad_norm_(1.0)
            plain["optimizer"].step()
            plain["optimizer"].zero_grad()
            recorder.step(samples)
    task = diffin.tasks.Classification(plain["model"])
    scores = diffin.score(task, diffin.Trajectory.open("runs/d"), data, query=plain["validation"], progress=False)
    np.testing.assert_allclose(third["scores"].influence, scores.influence, rtol=1e-9)


def _accelerated(data: TensorDataset) -> dict[str, Any]:
    """What the block takes for granted; the same at every call."""
    model = test_lightning_trainer.network()
    torch.manual_seed(5)
    order = [torch.randperm(len(data))[:4].tolist() for _ in range(12)]
    return {
        "diffin": diffin,
        "model": model,
        "optimizer": torch.optim.AdamW(model.parameters(), lr=0.01),
        "batches": torch.utils.data.DataLoader(diffin.Indexed(data), batch_sampler=order),
        "loss": torch.nn.functional.cross_entropy,
        "train": data,
        "validation": test_lightning_trainer.data(9, seed=1),
        "steps": len(order) // 2,
    }
