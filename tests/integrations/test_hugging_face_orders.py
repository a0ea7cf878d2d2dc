"""The samples of every step are known, however a ``transformers.Trainer`` draws them, and in how many processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
from test_hugging_face_trainer import record
from tiny_models import SAMPLES, Texts, language_model

import diffin
from diffin.rerun import Rerun
from diffin.sources import open_source
from diffin.tasks import LanguageModel


def lists(ragged: bool) -> datasets.Dataset:
    """Texts as the datasets library has them, with a column that the model does not take, and lengths."""
    texts = Texts(ragged=ragged)
    rows = [{name: tensor.tolist() for name, tensor in texts[index].items()} for index in range(SAMPLES)]
    lengths = [sum(row["attention_mask"]) for row in rows]
    return datasets.Dataset.from_list(
        [{**row, "length": length, "note": str(i)} for i, (row, length) in enumerate(zip(rows, lengths, strict=True))]
    )


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"train_sampling_strategy": "group_by_length", "length_column_name": "length"},
        {"train_sampling_strategy": "sequential"},
        {"dataloader_num_workers": 2, "dataloader_prefetch_factor": 3},
        {"dataloader_num_workers": 1, "dataloader_persistent_workers": True},
        {"accelerator_config": {"dispatch_batches": True}},
        {"max_steps": 5},
        {"dataloader_drop_last": True},
    ],
)
def test_samples_are_known_however_the_trainer_draws_them(tmp_path: Path, settings: dict[str, Any]) -> None:
    """The states that are reached again with the recorded samples are the witness."""
    data, model = lists(ragged=True), language_model()
    trajectory = record(tmp_path, model, data, **settings)
    task = LanguageModel(model, reduction="sum", divisor=4.0)
    columns = data.remove_columns(["length", "note"]).with_format("torch")
    rerun = Rerun(task, trajectory, open_source(columns))
    assert trajectory.total_steps == settings.get("max_steps", 12)
    # The library takes the loss of a language model in float32.
    assert rerun.repeat(trajectory.initial, trajectory.final) < 1e-5


PROCESS = """
import sys, torch
from pathlib import Path
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from tiny_models import Sentences, arguments, classifier, trainer
from diffin.integrations.hugging_face import RecorderCallback
args = arguments(Path("out"), gradient_accumulation_steps=1, ddp_backend="gloo", save_strategy="steps", save_steps=12)
trainer(classifier(), args, Sentences(), RecorderCallback("run")).train()
"""


@pytest.mark.slow
def test_of_several_processes_the_first_records_states(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(PROCESS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train.py"]
    done = subprocess.run(
        [*command, str(Path(__file__).parent)],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    recorded, saved = diffin.Trajectory.open(tmp_path / "run"), diffin.Trajectory.open(tmp_path / "out")
    assert "2 processes" in recorded.replay_obstacles()[0]
    assert recorded.final.parameters.keys() == saved.final.parameters.keys()
    assert all((t == saved.final.parameters[name]).all() for name, t in recorded.final.parameters.items())
