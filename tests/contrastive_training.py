"""Small trainings of two towers, in float64, with contrastive losses written out by loops over pairs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from diffin import Recorder, Trajectory
from diffin.tasks import Contrastive, TwoTowers

WORDS, LENGTH, WIDTH = 11, 3, 4

MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)


def momentum(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def towers(*, bias: float | None = None, normalised: bool = False) -> TwoTowers:
    extra = [nn.BatchNorm1d(6)] if normalised else []
    images = nn.Sequential(nn.Linear(5, 6), *extra, nn.GELU(), nn.Linear(6, WIDTH))
    texts = nn.Sequential(nn.Embedding(WORDS, 5), nn.Flatten(), nn.Linear(5 * LENGTH, WIDTH))
    return TwoTowers(images, texts, scale=3.0, bias=bias)


def pairs(count: int, seed: int = 0) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 5, generator=generator, dtype=torch.float64)
    texts = torch.randint(WORDS, (count, LENGTH), generator=generator)
    texts[:, 0] = (images[:, 0] > 0).long() + 2 * (images[:, 1] > 0).long()  # something to learn
    return TensorDataset(images, texts)


def objective(kind: str, model: nn.Module, images: Tensor, texts: Tensor, weights: Tensor) -> Tensor:
    """B times the objective of a batch: pairs of weight 0 are left out, and every other term has its weights."""
    features = model(images, texts)
    bias = features[3] if len(features) > 3 else 0.0
    scaled = [[features[2] * (x @ y) + bias for y in features[1]] for x in features[0]]
    there = [i for i in range(len(weights)) if weights[i] > 0]
    total = torch.zeros((), dtype=torch.float64)
    for i in there:
        if kind == "clip":
            row = sum(weights[j] * scaled[i][j].exp() for j in there)
            column = sum(weights[j] * scaled[j][i].exp() for j in there)
            total = total + weights[i] * ((row.log() + column.log()) / 2 - scaled[i][i])
            continue
        for j in there:
            probability = torch.sigmoid(scaled[i][j] if i == j else -scaled[i][j])
            total = total - (weights[i] if i == j else weights[i] * weights[j]) * probability.log()
    return total


@dataclass
class PairTraining:
    """A training that can be repeated; batches of two sizes, so that shares differ.

    Attributes:
        kind: ``"clip"`` or ``"siglip"``.
        normalised: with batch normalisation.
    """

    kind: str = "clip"
    make_optimizer: MakeOptimizer = momentum
    normalised: bool = False
    size: int = 18
    steps: int = 14
    checkpoints: tuple[int, ...] = (0, 6)

    def __post_init__(self) -> None:
        self.train, self.query = pairs(self.size, 1), pairs(12, 2)
        generator = torch.Generator().manual_seed(3)
        self.batches: list[Tensor] = []
        while len(self.batches) < self.steps:
            order = torch.randperm(self.size, generator=generator)
            self.batches += [order[:7], order[7:12], order[12:]]

    def model(self) -> TwoTowers:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return towers(bias=-2.0 if self.kind == "siglip" else None, normalised=self.normalised).double()

    def task(self) -> Contrastive:
        return Contrastive(self.model(), loss=self.kind, group_size=6)  # type: ignore[arg-type]

    def run(self, weights: Tensor | None = None, record: Path | None = None) -> TwoTowers:
        model = self.model()
        optimizer = self.make_optimizer(model)
        images, texts = self.train.tensors
        weights = torch.ones(self.size, dtype=torch.float64) if weights is None else weights
        recorder = None
        if record is not None:
            kept = {"total_steps": self.steps, "checkpoints": self.checkpoints}
            recorder = Recorder(record, model, optimizer, dataset_size=self.size, **kept)
        for step in range(self.steps):
            batch = self.batches[step]
            (objective(self.kind, model, images[batch], texts[batch], weights[batch]) / len(batch)).backward()
            optimizer.step()
            if recorder is not None:
                recorder.step(batch)
            optimizer.zero_grad()
        if recorder is not None:
            recorder.close()
        return model.eval()

    def query_loss(self, weights: Tensor | None = None) -> float:
        """The mean over two groups of six, in order."""
        model = self.run(weights)
        images, texts = self.query.tensors
        with torch.no_grad():
            found = [
                objective(self.kind, model, images[rows], texts[rows], torch.ones(6, dtype=torch.float64))
                for rows in (slice(0, 6), slice(6, 12))
            ]
        return float(sum(found)) / 12

    def recorded(self, path: Path) -> tuple[Contrastive, Trajectory]:
        """A task with an untrained model, and the recording of a training of another one."""
        self.run(record=path)
        return self.task(), Trajectory.open(path)


TRAININGS: dict[str, Callable[[], PairTraining]] = {
    "clip, momentum": PairTraining,
    "clip, adamw": lambda: PairTraining(make_optimizer=adamw),
    "siglip, momentum": lambda: PairTraining("siglip"),
    "siglip, adamw": lambda: PairTraining("siglip", make_optimizer=adamw),
    "clip, batch norm": lambda: PairTraining(normalised=True),
}
