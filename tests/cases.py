"""Small models of every kind the derivatives must handle, and the dense references they are held against.

The references are plain: flatten all parameters, build the loss of one sample, let autograd make the whole gradient and
the whole Hessian, in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffin.batches import map_tensors, select
from diffin.task import PerSampleLoss, Task
from diffin.tasks import Classification, FunctionTask, Regression

SAMPLES = 6


class Transformer(nn.Module):
    """Embedding, a class token, packed-weight attention, layer norms, and a head tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 8)
        self.token = nn.Parameter(torch.randn(1, 1, 8) * 0.3)
        self.block = nn.TransformerEncoderLayer(
            8, 2, dim_feedforward=12, dropout=0.2, activation="gelu", batch_first=True
        )
        self.head = nn.Linear(8, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(tokens), -1, -1), self.embedding(tokens)], dim=1)
        return self.head(self.block(x)[:, 0])


class FlatTokens(nn.Module):
    """A layer that sees (batch * tokens, features), as many language models do."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 6)
        self.mix = nn.Linear(6, 6)
        self.norm = nn.RMSNorm(6)
        self.head = nn.Linear(6, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        flat = F.silu(self.mix(x.reshape(-1, 6)))
        return self.head(self.norm(flat).reshape(x.shape).mean(dim=1))


class Shared(nn.Module):
    """One layer used twice, and its weight once more behind its back."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.layer(torch.tanh(self.layer(x))))
        return self.head(x @ self.layer.weight)


class TwiceUsed(nn.Module):
    """One layer used twice, the whole of it visible to hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.layer(torch.tanh(self.layer(x)))))


class SequenceFirst(nn.Module):
    """A layer whose outputs do not begin with the batch dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.inner(x.transpose(0, 1))).mean(dim=0))


def _cnn(activation: Callable[[], nn.Module]) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        activation(),
        nn.Conv2d(4, 4, 3, stride=2, groups=2),
        nn.GroupNorm(2, 4),
        activation(),
        nn.Flatten(),
        nn.Linear(16, 3),
    )


def _with_statistics(model: nn.Module) -> nn.Module:
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    return model


@dataclass
class Case:
    """A task in float64, a batch of samples and a batch of queries."""

    task: Task
    batch: Any
    query: Any

    def to(self, dtype: torch.dtype) -> Case:
        self.task.model.to(dtype)

        def cast(tensor: Tensor) -> Tensor:
            return tensor.to(dtype) if tensor.is_floating_point() else tensor

        return Case(self.task, map_tensors(cast, self.batch), map_tensors(cast, self.query))


def _images() -> tuple[Tensor, Tensor]:
    return torch.randn(SAMPLES, 1, 6, 6), torch.randint(3, (SAMPLES,))


def _tokens(classes: int) -> tuple[Tensor, Tensor]:
    return torch.randint(7, (SAMPLES, 4)), torch.randint(classes, (SAMPLES,))


def _features(*shape: int) -> tuple[Tensor, Tensor]:
    return torch.randn(SAMPLES, *shape), torch.randint(3, (SAMPLES,))


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))


def _function_loss(model: nn.Module, batch: Any) -> Tensor:
    return F.smooth_l1_loss(model(batch["x"]), batch["y"], reduction="none").mean(dim=1)


def _builders() -> dict[str, Callable[[], Case]]:
    return {
        "mlp": lambda: Case(Classification(_mlp(), label_smoothing=0.1), _features(5), _features(5)),
        "regression": lambda: Case(
            Regression(nn.Sequential(nn.Linear(5, 4), nn.GELU(), nn.Linear(4, 1))),
            (torch.randn(SAMPLES, 5), torch.randn(SAMPLES)),
            (torch.randn(SAMPLES, 5), torch.randn(SAMPLES)),
        ),
        "function on a dict": lambda: Case(
            FunctionTask(_mlp(), _function_loss),
            {"x": torch.randn(SAMPLES, 5), "y": torch.randn(SAMPLES, 3)},
            {"x": torch.randn(SAMPLES, 5), "y": torch.randn(SAMPLES, 3)},
        ),
        "cnn with batch norm": lambda: Case(Classification(_with_statistics(_cnn(nn.GELU))), _images(), _images()),
        "transformer": lambda: Case(Classification(Transformer()), _tokens(7), _tokens(7)),
        "flattened tokens": lambda: Case(Classification(FlatTokens()), _tokens(3), _tokens(3)),
        "shared weight": lambda: Case(Classification(Shared()), _features(5), _features(5)),
        "layer used twice": lambda: Case(Classification(TwiceUsed()), _features(5), _features(5)),
        "sequence first": lambda: Case(Classification(SequenceFirst()), _features(3, 4), _features(3, 4)),
        "instance norm": lambda: Case(
            Classification(
                nn.Sequential(
                    nn.Conv2d(1, 4, 3), nn.InstanceNorm2d(4, affine=True), nn.SiLU(), nn.Flatten(), nn.Linear(64, 3)
                )
            ),
            _images(),
            _images(),
        ),
        "in-place activation": lambda: Case(
            Classification(nn.Sequential(nn.Linear(5, 6), nn.SiLU(inplace=True), nn.Linear(6, 3))),
            _features(5),
            _features(5),
        ),
    }


CASES = tuple(_builders())


def make(name: str, seed: int = 0) -> Case:
    """The case by name, with its own fixed random numbers, in float64."""
    previous = torch.get_default_dtype()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        torch.set_default_dtype(torch.float64)
        try:
            return _builders()[name]()
        finally:
            torch.set_default_dtype(previous)


def random_direction(loss: PerSampleLoss, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.dtype)
        for name, t in loss.parameters.items()
    }


class Dense:
    """Everything about a set of samples as matrices over the flattened parameters."""

    def __init__(self, loss: PerSampleLoss) -> None:
        self._loss = loss
        self._shapes = {name: t.shape for name, t in loss.parameters.items()}
        self.theta = self.flatten(loss.parameters)

    def flatten(self, vector: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([vector[name].reshape(-1) for name in self._shapes])

    def unflatten(self, flat: Tensor) -> dict[str, Tensor]:
        parts = flat.split([shape.numel() for shape in self._shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}

    def mean_loss(self, batch: Any) -> Callable[[Tensor], Tensor]:
        return lambda flat: self._loss(self.unflatten(flat), batch).mean()

    def gradient(self, batch: Any) -> Tensor:
        flat = self.theta.clone().requires_grad_()
        with _plain_attention():
            return torch.autograd.grad(self.mean_loss(batch)(flat), flat)[0]

    def hessian(self, batch: Any) -> Tensor:
        with _plain_attention():
            return torch.autograd.functional.hessian(self.mean_loss(batch), self.theta)

    def sample(self, batch: Any, index: int) -> Any:
        return select(batch, slice(index, index + 1))


def _plain_attention() -> Any:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel(SDPBackend.MATH)
