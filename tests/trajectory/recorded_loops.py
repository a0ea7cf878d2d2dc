"""Tiny trainings that a test can predict: their order, their learning rates and their gradients are all given."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffin.trajectory import Recorder

SAMPLES = 40
BATCH = 4


class Net(nn.Module):
    """What is awkward to store: normalisation, dropout, tied weights, a transposed weight, a hidden buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 6)
        self.norm = nn.BatchNorm1d(6)
        self.tied = nn.Linear(6, 6, bias=False)
        self.again = nn.Linear(6, 6, bias=False)
        self.again.weight = self.tied.weight
        self.turned = nn.Parameter(torch.randn(6, 3).t())
        self.register_buffer("hidden", torch.arange(3.0), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        features = nn.functional.dropout(torch.relu(self.norm(self.first(inputs))), 0.2, self.training)
        return self.again(torch.tanh(self.tied(features))) @ self.turned.t() + self.hidden


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(SAMPLES, 5, generator=generator), torch.randint(0, 3, (SAMPLES,), generator=generator)


def batch_indices(step: int) -> Tensor:
    """The batch of a step, from the step alone; samples may come twice."""
    return torch.randint(0, SAMPLES, (BATCH,), generator=torch.Generator().manual_seed(1000 + step))


def make(
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD, **constants: Any
) -> tuple[Net, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = Net()
    return model, optimizer(model.parameters(), **{"lr": 0.1, **constants})


def backward(model: nn.Module, indices: Tensor) -> None:
    inputs, targets = data()
    nn.functional.cross_entropy(model(inputs[indices]), targets[indices]).backward()


def train(
    recorder: Recorder,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    stop: int,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
    scheduler_first: bool = False,
) -> Iterator[int]:
    """Train until ``stop`` steps were taken, yielding before each step."""
    for step in range(recorder.steps_taken, stop):
        yield step
        optimizer.zero_grad()
        indices = batch_indices(step)
        backward(model, indices)
        optimizer.step()
        if scheduler is not None and scheduler_first:
            scheduler.step()
        recorder.step(indices)
        if scheduler is not None and not scheduler_first:
            scheduler.step()


def record(path: Path, stop: int = 12, **settings: Any) -> tuple[Net, torch.optim.Optimizer]:
    """A short recorded training with SGD and momentum."""
    model, optimizer = make(momentum=0.9)
    with Recorder(path, model, optimizer, dataset_size=SAMPLES, **settings) as recorder:
        for _ in train(recorder, model, optimizer, stop):
            pass
    return model, optimizer


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: t.detach().clone() for name, t in (*model.named_parameters(), *model.named_buffers())}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
