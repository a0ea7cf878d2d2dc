"""Other libraries on every sample by every query, and on every sample by itself; they run where `peers.txt` says.

Each is asked the way it offers for the question: the strongest samples of each query where it has a `top`, the whole matrix
where it has not. Plain inference of the same samples and checkpoints is timed in the same process.

    python peers_of_pairs.py QUESTION.pt ANSWER.pt

QUESTION is that of `peers.py`, with `asked`: "pairs" or "own", and `top`. ANSWER too, without scores for pairs.
"""

from __future__ import annotations

import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call
from torch.utils.data import DataLoader

from ekfac import Kronfluence
from peers import REPETITIONS, Question, captum, kronfluence, timed

DIMENSION = 512
"""Of the random projections of TRAK."""

Answer = dict[str, Any]


def captum_pairs(question: Question) -> Answer:
    """First order, at all checkpoints; it keeps the strongest itself."""
    with tempfile.TemporaryDirectory() as folder:
        method = captum(question, folder)
        query: Any = tuple(question.query.tensors)
        return _answer(
            "captum", question, lambda: method.influence(query, k=question.top, proponents=True).indices, last=False
        )


def captum_own(question: Question) -> Answer:
    with tempfile.TemporaryDirectory() as folder:
        return _answer("captum", question, captum(question, folder).self_influence, own=True, last=False)


def kronfluence_pairs(question: Question, strategy: str) -> Answer:
    """At the last checkpoint; the matrix."""
    with tempfile.TemporaryDirectory() as folder:
        method, preparing = _fitted(question, strategy, folder)

        def ask() -> Tensor:
            return _strongest(method.pairwise(question.query), question.top)

        return _answer("kronfluence", question, ask, preparation=preparing)


def kronfluence_own(question: Question, strategy: str) -> Answer:
    with tempfile.TemporaryDirectory() as folder:
        method, preparing = _fitted(question, strategy, folder)
        return _answer("kronfluence", question, method.own, own=True, preparation=preparing)


def traker_pairs(question: Question) -> Answer:
    """TRAK at the last checkpoint, projected to 512 dimensions; featurizing the samples is its preparation."""
    from trak import TRAKer

    with tempfile.TemporaryDirectory() as folder:
        state = question.checkpoints[-1]["state"]
        start = time.perf_counter()
        method = TRAKer(
            question.model(), "image_classification", train_set_size=len(question.train), save_dir=folder, device="cpu",
            proj_dim=DIMENSION, use_half_precision=False, logging_level=50,
        )  # fmt: skip
        method.load_checkpoint(state, model_id=0)
        for batch in DataLoader(question.train, question.batch_size):
            method.featurize(batch, num_samples=len(batch[1]))
        method.finalize_features()
        preparing = time.perf_counter() - start

        def ask() -> Tensor:
            method.start_scoring_checkpoint("query", state, 0, len(question.query))
            for batch in DataLoader(question.query, question.batch_size):
                method.score(batch, num_samples=len(batch[1]))
            return _strongest(torch.tensor(method.finalize_scores("query")).T, question.top)

        return _answer("traker", question, ask, preparation=preparing, repetitions=1)


def dattri_pairs(question: Question) -> Answer:
    """TRAK again, in dattri."""
    from dattri.algorithm.trak import TRAKAttributor
    from dattri.task import AttributionTask

    model = question.model()

    def loss(parameters: dict[str, Tensor], data: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(functional_call(model, parameters, (data[0].unsqueeze(0),)), data[1].unsqueeze(0))

    def margin(parameters: dict[str, Tensor], data: tuple[Tensor, Tensor]) -> Tensor:
        likelihood = -loss(parameters, data)
        return likelihood - torch.log1p(-likelihood.exp())

    def probability(parameters: dict[str, Tensor], data: tuple[Tensor, Tensor]) -> Tensor:
        return (-loss(parameters, data)).exp()

    task = AttributionTask(margin, model, [question.checkpoints[-1]["state"]])
    method = TRAKAttributor(task, probability, projector_kwargs={"proj_dim": DIMENSION})
    start = time.perf_counter()
    with torch.no_grad():
        method.cache(DataLoader(question.train, question.batch_size))
    preparing = time.perf_counter() - start

    def ask() -> Tensor:
        with torch.no_grad():
            return _strongest(method.attribute(DataLoader(question.query, question.batch_size)).T, question.top)

    return _answer("dattri", question, ask, preparation=preparing)


def _fitted(question: Question, strategy: str, folder: str) -> tuple[Kronfluence, float]:
    method = kronfluence(question, question.checkpoints[-1], strategy, folder)
    start = time.perf_counter()
    method.fit()
    return method, time.perf_counter() - start


def _strongest(effects: Tensor, top: int) -> Tensor:
    """Of Float[Tensor, "Q N"]: the samples of either end."""
    return torch.cat([effects.topk(top, dim=1).indices, effects.topk(top, dim=1, largest=False).indices], dim=1)


def _answer(
    package: str,
    question: Question,
    ask: Callable[[], Tensor],
    *,
    own: bool = False,
    last: bool = True,
    preparation: float = 0.0,
    repetitions: int = REPETITIONS,
) -> Answer:
    """At the last checkpoint, or at all; of pairs the scores are not sent back."""
    studied = question.checkpoints[-1:] if last else question.checkpoints
    answer = timed(question, studied, ask, package, preparation, repetitions=repetitions)
    return answer if own else {**answer, "scores": None}


PEERS: dict[str, dict[str, Callable[[Question], Answer]]] = {
    "pairs": {
        "captum TracInCP": captum_pairs,
        "kronfluence identity": lambda question: kronfluence_pairs(question, "identity"),
        "kronfluence EK-FAC": lambda question: kronfluence_pairs(question, "ekfac"),
        "traker TRAK": traker_pairs,
        "dattri TRAK": dattri_pairs,
    },
    "own": {
        "captum TracInCP": captum_own,
        "kronfluence identity": lambda question: kronfluence_own(question, "identity"),
        "kronfluence EK-FAC": lambda question: kronfluence_own(question, "ekfac"),
    },
}


def main(question_path: str, answer_path: str) -> None:
    warnings.filterwarnings("ignore")
    question = Question(question_path)
    answers: dict[str, Any] = {}
    for name, peer in PEERS[question.asked].items():
        try:
            answers[name] = peer(question)
        except Exception as error:  # one peer that fails must not hide the others
            answers[name] = {"failure": f"{type(error).__name__}: {error}"[:200]}
    torch.save(answers, answer_path)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
