"""What other libraries answer, each in several settings. It runs in the environment of `peers.txt`, without diffin.

    python peers.py QUESTION.pt ANSWER.pt

`question.py` says what QUESTION holds. ANSWER: for every peer, a list with one entry a setting:

    {"settings", "influence" float64 (N,), "per_query" float64 (Q', N) or None, "seconds", "preparation_seconds"}

or "failure" in the place of scores. The influence is of training on a sample on the mean loss of the query: negative
helps. TRAK's scores have a scale of their own; the others are in units of the loss, as far as their theory goes.
"""

from __future__ import annotations

import resource
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))

import by_captum
import by_dattri
import by_kronfluence
import by_trak
from question import Peer, Question

MEMORY = 10 * 2**30
"""Bytes of addresses; a peer that wants more has failed, and the others are still asked."""

PEERS: dict[str, Peer] = {
    "captum TracInCP": by_captum.tracin,
    "dattri TracIn": by_dattri.tracin,
    "dattri IF-explicit": by_dattri.explicit,
    "dattri IF-CG": by_dattri.conjugate_gradients,
    "dattri Arnoldi": by_dattri.arnoldi,
    "dattri TRAK": by_dattri.trak,
    "dattri DVEmb": by_dattri.dvemb,
    "traker TRAK": by_trak.final,
    "traker TRAK, several checkpoints": by_trak.several,
    "kronfluence identity": by_kronfluence.identity,
    "kronfluence EK-FAC": by_kronfluence.ekfac,
}


def answers(peer: Peer, question: Question) -> list[dict[str, Any]]:
    """All that one peer says; what fails is an answer too, and does not hide the others."""
    given: list[dict[str, Any]] = []
    start = time.perf_counter()
    preparation = None
    try:
        for settings, ask in peer(question):
            if preparation is None:
                preparation = time.perf_counter() - start
            given.append({"settings": settings, **_answer(ask), "preparation_seconds": preparation})
    except Exception as error:
        given.append({"settings": {}, "failure": _sentence(error)})
    return given


def _answer(ask: Any) -> dict[str, Any]:
    start = time.perf_counter()
    try:
        influence, per_query = ask()
        if not bool(influence.isfinite().all()):
            raise ArithmeticError("the scores are not finite")
    except Exception as error:
        return {"failure": _sentence(error)}
    return {
        "influence": influence.detach().double(),
        "per_query": None if per_query is None else per_query.detach().double(),
        "seconds": time.perf_counter() - start,
    }


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def main(question_path: str, answer_path: str) -> None:
    warnings.filterwarnings("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    stored = Question.load(Path(question_path))
    torch.set_num_threads(stored.get("threads", 1))
    question = Question(stored)
    wanted = stored.get("peers") or list(PEERS)
    unknown = sorted(set(wanted) - set(PEERS))
    if unknown:
        raise ValueError(f"no peer is called {unknown[0]!r}; there are {', '.join(PEERS)}")
    torch.save({name: answers(PEERS[name], question) for name in wanted}, answer_path)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
