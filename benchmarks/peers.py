"""Two other libraries on the question nearest to ours, run in an environment of their own (see `peers.txt`).

Both take the influence of every training sample on the *sum* of the query losses. captum's TracInCP and kronfluence's
"identity" strategy ask the first-order question at every checkpoint; kronfluence's EK-FAC asks a second-order one, at the
last checkpoint only. Whatever a library offers for one aggregated query is used. Plain inference over the same samples
and checkpoints is timed in the same process, so that ratios mean something.

    python peers.py QUESTION.pt ANSWER.pt

QUESTION holds `train` and `query` (inputs, targets), `checkpoints` ({"state", "learning_rate"} each), `kind`, `batch_size`
and `threads`; `peers_of_pairs.py` has two more. ANSWER: for every peer, seconds, seconds of preparation, seconds of plain
inference of the same samples and checkpoints, and the scores.
"""

from __future__ import annotations

import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ekfac import Kronfluence
from networks import cnn

REPETITIONS = 2


class Question:
    """The models, samples and queries that all peers are asked about."""

    def __init__(self, path: str) -> None:
        stored = torch.load(path, weights_only=True)
        self.train = TensorDataset(*stored["train"])
        self.query = TensorDataset(*stored["query"])
        self.checkpoints: list[dict[str, Any]] = stored["checkpoints"]
        self.kind: str = stored["kind"]
        self.batch_size: int = stored["batch_size"]
        self.asked: str = stored.get("asked", "score")
        self.top: int = stored.get("top", 0)
        torch.set_num_threads(stored["threads"])

    def model(self, checkpoint: dict[str, Any] | None = None) -> nn.Module:
        model = cnn(self.kind).eval()
        if checkpoint is not None:
            model.load_state_dict(checkpoint["state"])
        return model

    def plain(self, checkpoints: list[dict[str, Any]]) -> None:
        """Losses of all samples at the checkpoints, and nothing else; the data is read once, as diffin's baseline does."""
        with torch.inference_mode():
            batches = list(DataLoader(self.train, self.batch_size))
            for checkpoint in checkpoints:
                model = self.model(checkpoint)
                for inputs, targets in batches:
                    F.cross_entropy(model(inputs), targets, reduction="none")


def captum_tracin(question: Question) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        tracin = captum(question, folder)
        query = DataLoader(question.query, question.batch_size)
        return timed(
            question, question.checkpoints, lambda: tracin.influence(query, aggregate=True).flatten(), "captum"
        )


def captum(question: Question, folder: str) -> Any:
    """TracInCP over the checkpoints, which it reads from files in the folder."""
    from captum.influence import TracInCP

    paths = []
    for number, checkpoint in enumerate(question.checkpoints):
        paths.append(str(Path(folder) / f"{number}.pt"))
        torch.save(checkpoint, paths[-1])

    def load(model: nn.Module, path: str) -> float:
        checkpoint = torch.load(path, weights_only=True)
        model.load_state_dict(checkpoint["state"])
        return float(checkpoint["learning_rate"])

    return TracInCP(
        question.model(),
        question.train,
        paths,
        checkpoints_load_func=load,
        loss_fn=nn.CrossEntropyLoss(reduction="sum"),
        batch_size=question.batch_size,
        sample_wise_grads_per_batch=True,
    )


def kronfluence_identity(question: Question) -> dict[str, Any]:
    def ask() -> Tensor:
        total = torch.zeros(len(question.train))
        for checkpoint in question.checkpoints:
            with tempfile.TemporaryDirectory() as folder:
                method = kronfluence(question, checkpoint, "identity", folder)
                method.fit()
                total += checkpoint["learning_rate"] * method.scores()
        return total

    return timed(question, question.checkpoints, ask, "kronfluence")


def kronfluence_ekfac(question: Question) -> dict[str, Any]:
    last = question.checkpoints[-1:]
    with tempfile.TemporaryDirectory() as folder:
        method = kronfluence(question, last[0], "ekfac", folder)
        start = time.perf_counter()
        method.fit()
        preparation = time.perf_counter() - start
        return timed(question, last, method.scores, "kronfluence", preparation)


def kronfluence(question: Question, checkpoint: dict[str, Any], strategy: str, folder: str) -> Kronfluence:
    return Kronfluence(
        question.model(checkpoint),
        question.train,
        question.query,
        strategy=strategy,
        batch_size=question.batch_size,
        folder=folder,
    )


def timed(
    question: Question,
    checkpoints: list[dict[str, Any]],
    ask: Callable[[], Tensor],
    package: str,
    preparation: float | None = None,
    *,
    repetitions: int = REPETITIONS,
) -> dict[str, Any]:
    """The faster of some runs of each, taken in turn."""
    asked, plain, scores = [], [], torch.zeros(0)
    for _ in range(repetitions):
        start = time.perf_counter()
        question.plain(checkpoints)
        plain.append(time.perf_counter() - start)
        start = time.perf_counter()
        scores = ask()
        asked.append(time.perf_counter() - start)
    return {
        "seconds": min(asked),
        "plain_seconds": min(plain),
        "preparation_seconds": preparation,
        "checkpoints": len(checkpoints),
        "version": version(package),
        "scores": scores.detach().double(),
    }


PEERS: dict[str, Callable[[Question], dict[str, Any]]] = {
    "captum TracInCP": captum_tracin,
    "kronfluence identity": kronfluence_identity,
    "kronfluence EK-FAC": kronfluence_ekfac,
}


def main(question_path: str, answer_path: str) -> None:
    warnings.filterwarnings("ignore")
    question = Question(question_path)
    answers: dict[str, Any] = {}
    for name, peer in PEERS.items():
        try:
            answers[name] = peer(question)
        except Exception as error:  # one peer that fails must not hide the others
            answers[name] = {"failure": f"{type(error).__name__}: {error}"[:200]}
    torch.save(answers, answer_path)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
