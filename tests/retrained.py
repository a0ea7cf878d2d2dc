"""Plain trainings with weighted samples, in float64: the reference for everything that is executed again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from diffin import Recorder, Trajectory
from diffin.tasks import Classification

MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]


def sgd(**options: float) -> MakeOptimizer:
    return lambda model: torch.optim.SGD(model.parameters(), **{"lr": 0.2, **options})


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)


@dataclass
class Training:
    """A training that can be repeated: the same initial parameters, order, batches and random numbers every time.

    Attributes:
        build: makes the model; called with fixed random numbers.
        micro_batches: how many the batch of a step is cut into.
        clip: the largest norm of a gradient.
        norm_type: which norm.
        schedule: called before every step with the optimizer and the number of the step.
        checkpoints: where states are stored, beside the last.
    """

    build: Callable[[], nn.Module]
    make_optimizer: MakeOptimizer
    size: int = 24
    steps: int = 20
    batch_size: int = 6
    micro_batches: int = 1
    clip: float | None = None
    shape: tuple[int, ...] = (5,)
    norm_type: float = 2.0
    schedule: Callable[[torch.optim.Optimizer, int], None] | None = None
    checkpoints: Sequence[int] = (0, 8)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(3)
        inputs = torch.randn(self.size + 12, *self.shape, generator=generator, dtype=torch.float64)
        targets = torch.randint(3, (self.size + 12,), generator=generator)
        self.train = TensorDataset(inputs[: self.size], targets[: self.size])
        self.query = TensorDataset(inputs[self.size :], targets[self.size :])
        per_epoch = self.size // self.batch_size
        self.batches: list[Tensor] = []
        while len(self.batches) < self.steps:
            order = torch.randperm(self.size, generator=generator)
            self.batches += order[: per_epoch * self.batch_size].split(self.batch_size)

    def model(self) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return self.build().double()

    def run(self, weights: Tensor | None = None, record: Path | None = None) -> nn.Module:
        """Train with every sample's loss multiplied by its weight; the trained model, in evaluation mode."""
        model = self.model()
        optimizer = self.make_optimizer(model)
        inputs, targets = self.train.tensors
        weights = torch.ones(self.size, dtype=torch.float64) if weights is None else weights
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng())
            torch.manual_seed(7)
            recorder = None
            if record is not None:
                kept = {"total_steps": self.steps, "checkpoints": self.checkpoints}
                recorder = stack.enter_context(Recorder(record, model, optimizer, dataset_size=self.size, **kept))
            for step in range(self.steps):
                if self.schedule is not None:
                    self.schedule(optimizer, step)
                pieces = self.batches[step].chunk(self.micro_batches)
                for piece in pieces:
                    losses = F.cross_entropy(model(inputs[piece]), targets[piece], reduction="none")
                    ((losses * weights[piece]).mean() / len(pieces)).backward()
                    if recorder is not None and piece is not pieces[-1]:
                        recorder.accumulate(piece)
                if self.clip is not None and recorder is not None:
                    recorder.clip_grad_norm_(self.clip, self.norm_type)
                elif self.clip is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), self.clip, self.norm_type)
                optimizer.step()
                if recorder is not None:
                    recorder.step(pieces[-1])
                optimizer.zero_grad()
        return model.eval()

    def query_losses(self, weights: Tensor | None = None) -> Tensor:
        """Float64[Tensor, "12"], of every sample of the query, after training with the weights."""
        inputs, targets = self.query.tensors
        model = self.run(weights)
        with torch.no_grad():
            return F.cross_entropy(model(inputs), targets, reduction="none")

    def recorded(self, path: Path) -> tuple[Classification, Trajectory]:
        """A task with an untrained model, and the recording of a training of another one."""
        self.run(record=path)
        return Classification(self.model()), Trajectory.open(path)


def mlp(*extra: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), *extra, nn.Linear(6, 3))


def cnn(momentum: float | None = 0.1) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.BatchNorm2d(3),
        nn.GELU(),
        nn.Conv2d(3, 4, 3, stride=2),
        nn.BatchNorm2d(4, momentum=momentum),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(16, 3),
    )


class PartlyUnused(nn.Module):
    """A layer that no loss depends on: without a gradient, weight decay leaves it alone."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(5, 3), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


class Looking(nn.Module):
    """Looks at the values of its activations, which cannot be done for many runs at once."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer(x)
        return out if out.abs().max().item() < 1e6 else out * 0


class Counting(nn.Module):
    """Keeps a whole number in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.layer(x)


TRAININGS: dict[str, Callable[[], Training]] = {
    "sgd": lambda: Training(mlp, sgd()),
    "momentum and decay": lambda: Training(mlp, sgd(momentum=0.9, weight_decay=0.1)),
    "adamw": lambda: Training(mlp, adamw),
    "clipped": lambda: Training(mlp, sgd(momentum=0.9), clip=0.3),
    "batch norm": lambda: Training(cnn, sgd(momentum=0.9), shape=(1, 6, 6)),
    "batch norm that looks at its count": lambda: Training(lambda: cnn(None), sgd(momentum=0.9), shape=(1, 6, 6)),
    "dropout": lambda: Training(lambda: mlp(nn.Dropout(0.3)), sgd()),
    "micro-batches": lambda: Training(mlp, adamw, micro_batches=2),
    "unused parameters": lambda: Training(PartlyUnused, sgd(weight_decay=0.1)),
    "counting": lambda: Training(Counting, sgd()),
    "looking at values": lambda: Training(Looking, sgd()),
}
