"""A training set of digits with everything beside it that can be explored, and a way to ask the server."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

import diffin
from diffin.explore import Explorer
from diffin.tasks import Classification
from training import record

SAMPLES, QUERIES, TOP = 240, 12, 6


@dataclass(frozen=True)
class Explored:
    """What was computed of one training; folders named as on a command line."""

    folder: Path
    problem: diffin.Problem

    @property
    def scores(self) -> diffin.Scores:
        return diffin.Scores.open(self.folder / "scores")

    @property
    def suspects(self) -> diffin.Suspects:
        return diffin.Suspects.open(self.folder / "suspects")

    @property
    def attribution(self) -> diffin.Attribution:
        return diffin.Attribution.open(self.folder / "pairs")

    @property
    def state(self) -> Any:
        final = diffin.Trajectory.open(self.folder / "run").final
        assert final is not None
        return final.state


def digits(folder: Path) -> Explored:
    """Train on 240 digits, a tenth of them mislabelled; score, clean and attribute."""
    pictures, labels = load_digits(return_X_y=True)
    images, classes = torch.from_numpy(pictures / 16).float().reshape(-1, 1, 8, 8), torch.from_numpy(labels)
    wrong = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(0))[: SAMPLES // 10]
    classes[wrong] = (classes[wrong] + 1 + wrong % 8) % 10
    end = SAMPLES + QUERIES
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10))
    train = TensorDataset(images[:SAMPLES], classes[:SAMPLES])
    query = TensorDataset(images[SAMPLES:end], classes[SAMPLES:end])
    problem = diffin.Problem(Classification(model, class_names=[f"digit {k}" for k in range(10)]), train, query)
    trajectory = record(folder / "run", problem.task, train, steps=80, batch_size=16, checkpoints=5, learning_rate=0.5)
    asked = {"estimator": diffin.TracIn(), "progress": False}
    diffin.score(problem.task, trajectory, train, query=query, output=folder / "scores", **asked)
    diffin.clean(problem.task, trajectory, train, progress=False).save(folder / "suspects")
    diffin.attribute(problem.task, trajectory, train, query, top=TOP, matrix=True, output=folder / "pairs", **asked)
    return Explored(folder, problem)


class Client:
    """Asks the server as its page does, or as somebody else."""

    def __init__(self, explorer: Explorer) -> None:
        parts = urlsplit(explorer.url)
        self.host, self.token = parts.netloc, parts.query
        self.cookie = ""
        status, headers, _ = self.raw("GET", f"/?{self.token}")
        assert status == 200
        self.set_cookie = headers["set-cookie"]
        self.cookie = self.set_cookie.partition(";")[0]

    def raw(
        self, method: str, path: str, content: Any = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers in lower case, and what came back; ``headers`` replace those that the page sends."""
        sent = {"Host": self.host, "Cookie": self.cookie, "Origin": f"http://{self.host}"}
        sent |= {"Sec-Fetch-Site": "same-origin", **(headers or {})}
        connection = http.client.HTTPConnection(self.host, timeout=20)
        try:
            connection.putrequest(method, path, skip_host=True)
            body = b"" if content is None else json.dumps(content).encode()
            for name, value in {**sent, "Content-Length": str(len(body))}.items():
                if value:
                    connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def get(self, path: str) -> Any:
        status, _, body = self.raw("GET", path)
        assert status == 200, body
        return json.loads(body)

    def post(self, path: str, content: Any, status: int = 200) -> Any:
        found, _, body = self.raw("POST", path, content)
        assert found == status, body
        return json.loads(body)

    def view(self, **asked: Any) -> Any:
        return self.post("/api/view", question(**asked))


def question(**asked: Any) -> dict[str, Any]:
    """What a page asks that restricts nothing but by ``asked``."""
    nothing: dict[str, Any] = {
        "categories": {},
        "ranges": {},
        "agreement": None,
        "failed": None,
        "marks": [],
        "text": "",
    }
    return {**nothing, "sort": "influence", "descending": True, **asked}


def until(page: Any, condition: str, tries: int = 200) -> None:
    """Wait for an expression to hold; the policy of the page leaves no other way."""
    for _ in range(tries):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never: {condition}")
