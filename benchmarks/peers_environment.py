"""Making the environment of the other libraries, and asking them there."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import TensorDataset

from training import Run

HERE = Path(__file__).parent
ENVIRONMENT = HERE.parent / ".venv-peers"
_REQUIREMENTS = HERE / "peers.txt"
_INSTALLED = ENVIRONMENT / ".installed"
_PYTHON = ENVIRONMENT / ("Scripts" if sys.platform == "win32" else "bin") / "python"


class PeersError(RuntimeError):
    """The other libraries cannot be asked; the message says why."""


def about(run: Run, query: TensorDataset, *, batch_size: int, **more: Any) -> dict[str, Any]:
    """A question as `peers.py` describes it, about a run of the smooth network."""
    return {
        "train": run.train.tensors,
        "query": query.tensors,
        "checkpoints": [{"state": c.state, "learning_rate": c.learning_rate} for c in run.trajectory.checkpoints],
        "kind": "smooth",
        "batch_size": batch_size,
        "threads": torch.get_num_threads(),
        **more,
    }


def ask(
    question: dict[str, Any], folder: Path, *, script: Path = HERE / "peers.py", seconds: float = 1200
) -> dict[str, Any]:
    """What a script answers, by peer; it runs in the environment with the files of question and answer as arguments.

    Raises:
        PeersError: the environment cannot be made, or the process failed or took longer than the seconds.
    """
    _make()
    torch.save(question, folder / "question.pt")
    _run([str(_PYTHON), str(script), str(folder / "question.pt"), str(folder / "answer.pt")], seconds)
    answers: dict[str, Any] = torch.load(folder / "answer.pt", weights_only=True)
    return answers


def _make() -> None:
    wanted = _REQUIREMENTS.read_text()
    if _INSTALLED.is_file() and _INSTALLED.read_text() == wanted:
        return
    if not _PYTHON.exists():
        venv.create(ENVIRONMENT, with_pip=True)
    _run([str(_PYTHON), "-m", "pip", "install", "--quiet", "-r", str(_REQUIREMENTS)])
    _INSTALLED.write_text(wanted)


def _run(command: list[str], seconds: float = 1200) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=seconds)
    except subprocess.SubprocessError as error:
        output = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        raise PeersError(f"{Path(command[1]).name if len(command) > 1 else command[0]}: {output[-1]}") from error
