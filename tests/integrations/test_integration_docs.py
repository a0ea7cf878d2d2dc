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

import diffin

PAGE = Path(__file__).parents[2] / "docs" / "integrations.md"


def test_the_examples_run_as_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    hugging_face, lightning, finished = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
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
    third = {name: first[name] for name in ("diffin", "model", "task", "train", "validation")}
    exec(finished, third)
    for space in (first, second, third):
        assert np.isfinite(space["scores"].influence).all()
        assert space["scores"].influence.std() > 0
