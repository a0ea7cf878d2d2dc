"""Asking the other libraries about a recorded case.

python benchmarks/accuracy/ask.py CASE [PEER ...]     # train, ask, and print what came back
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

import diffin
from cases import Case, case, record

sys.path.append(str(Path(__file__).resolve().parents[1]))

HERE = Path(__file__).resolve().parent


def question(
    case: Case, trajectory: diffin.Trajectory, model: nn.Module, *, order_seed: int = 0, peers: Sequence[str] = ()
) -> dict[str, Any]:
    """What `question.py` describes. The model is as training left it; without names of peers, all are asked."""
    checkpoints = [
        {"step": checkpoint.step, "learning_rate": checkpoint.learning_rate, "state": dict(checkpoint.state)}
        for checkpoint in trajectory.checkpoints
    ]
    return {
        "case": case.name,
        "architecture": case.architecture,
        "dtype": str(case.dtype).removeprefix("torch."),
        "N": len(case.train),
        "steps": case.steps,
        "train": case.train.tensors,
        "query": case.query.tensors,
        "checkpoints": [*checkpoints, {"step": case.steps, "learning_rate": 0.0, "state": dict(model.state_dict())}],
        "replay": {
            "state": dict(case.build_model().state_dict()),
            "indices": torch.stack(list(case.batches(order_seed))),
            "recipe": asdict(case.recipe),
        },
        "peers": list(peers),
        "threads": 1,
    }


def ask(asked: dict[str, Any], *, seconds: float = 1200) -> dict[str, list[dict[str, Any]]]:
    """What `peers.py` answers, by peer.

    Raises:
        PeersError: the environment cannot be made, or the peers failed as a whole or took longer than the seconds.
    """
    import peers_environment

    with tempfile.TemporaryDirectory() as folder:
        return peers_environment.ask(asked, Path(folder), script=HERE / "peers.py", seconds=seconds)


def main(name: str, peers: Sequence[str]) -> None:
    torch.set_num_threads(1)
    studied = case(name)
    with tempfile.TemporaryDirectory() as folder:
        model, trajectory = record(studied, Path(folder) / "run")
        answers = ask(question(studied, trajectory, model, peers=peers))
    for peer, given in answers.items():
        for answer in given:
            settings = ", ".join(f"{key} {value}" for key, value in answer["settings"].items())
            print(f"{peer} ({settings}): {answer.get('failure') or format(answer['seconds'], '.1f') + ' s'}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
