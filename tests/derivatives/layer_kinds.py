"""One model for every kind of layer and of use that derivatives meet, in float64, with its samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from cases import CASES, SAMPLES, Case, make
from diffin.tasks import FunctionTask


class Images(nn.Module):
    """Layers over pictures of 3 x 7 x 6, then the sum of squares of what comes out, weighted by a fixed random pattern."""

    def __init__(self, *layers: nn.Module, prepare: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.prepare = prepare

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(self.prepare(x)).reshape(len(x), -1)
        return (torch.tanh(y) * torch.linspace(-1, 2, y.shape[1], dtype=y.dtype)).sum(dim=1)


def _lines(x: Tensor) -> Tensor:
    return x.flatten(2)


def _solid(x: Tensor) -> Tensor:
    return x.reshape(len(x), 1, 3, 7, 6)


def _frames(x: Tensor) -> Tensor:
    return x.reshape(len(x) * 3, 1, 7, 6)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "conv1d": lambda: Images(nn.Conv1d(3, 4, 5, stride=3, padding=2, dilation=2), prepare=_lines),
    "conv1d, replicate": lambda: Images(
        nn.Conv1d(3, 6, 3, groups=3, padding=2, padding_mode="replicate"), prepare=_lines
    ),
    "conv2d": lambda: Images(nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 0)), nn.Conv2d(4, 2, 3)),
    "conv2d, groups and dilation": lambda: Images(
        nn.Conv2d(3, 6, 3, groups=3, dilation=2, padding=2), nn.Tanh(), nn.Conv2d(6, 4, 1, groups=2)
    ),
    "conv2d, same": lambda: Images(nn.Conv2d(3, 4, (4, 3), padding="same", bias=False)),
    "conv2d, valid": lambda: Images(nn.Conv2d(3, 4, 3, padding="valid", stride=4)),
    "conv2d, circular": lambda: Images(nn.Conv2d(3, 4, 3, padding=2, padding_mode="circular")),
    "conv2d, reflect": lambda: Images(nn.Conv2d(3, 4, 3, padding=(1, 2), padding_mode="reflect")),
    "conv2d, several pictures a sample": lambda: Images(
        nn.Conv2d(1, 4, 3, groups=1), nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 2, groups=2), prepare=_frames
    ),
    "conv3d": lambda: Images(
        nn.Conv3d(1, 4, (2, 3, 3), stride=(1, 2, 1), padding=(1, 0, 1), dilation=(1, 1, 2)), prepare=_solid
    ),
    "conv3d, circular": lambda: Images(
        nn.Conv3d(1, 4, (2, 3, 3), padding=(1, 1, 2), padding_mode="circular"),
        nn.Conv3d(4, 2, 2, groups=2, stride=2),
        prepare=_solid,
    ),
    "transposed conv1d": lambda: Images(
        nn.ConvTranspose1d(3, 4, 3, stride=2, padding=1, output_padding=1), prepare=_lines
    ),
    "transposed conv2d": lambda: Images(
        nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2, dilation=2)
    ),
    "transposed conv2d, long output padding": lambda: Images(
        nn.ConvTranspose2d(3, 2, 2, stride=1, dilation=3, output_padding=2)
    ),
    "transposed conv3d": lambda: Images(nn.ConvTranspose3d(1, 2, 2, stride=2), prepare=_solid),
    "transposed conv3d, groups and dilation": lambda: Images(
        nn.Conv3d(1, 2, (3, 6, 5)), nn.ConvTranspose3d(2, 4, 2, groups=2, dilation=2, padding=1), prepare=_solid
    ),
    "batch norm 1d": lambda: Images(nn.Linear(126, 5), nn.BatchNorm1d(5), prepare=lambda x: x.flatten(1)),
    "batch norm 1d, lines": lambda: Images(nn.BatchNorm1d(3), nn.Tanh(), nn.Conv1d(3, 2, 2), prepare=_lines),
    "batch norm 3d": lambda: Images(nn.BatchNorm3d(1), prepare=_solid),
    "instance norm with statistics": lambda: Images(
        nn.Conv2d(3, 4, 2), nn.InstanceNorm2d(4, affine=True, track_running_stats=True)
    ),
    "instance norm 1d": lambda: Images(nn.InstanceNorm1d(3, affine=True), prepare=_lines),
    "instance norm 3d": lambda: Images(nn.Conv3d(1, 2, 2), nn.InstanceNorm3d(2, affine=True), prepare=_solid),
    "layer norm of two dimensions": lambda: Images(nn.LayerNorm([7, 6]), nn.LayerNorm(6, bias=False)),
    "rms norm": lambda: Images(nn.RMSNorm([7, 6]), nn.Linear(6, 2)),
    "linear over positions": lambda: Images(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 9, bias=False)),
    "linear, few positions": lambda: Images(
        nn.Linear(21, 40), nn.Tanh(), nn.Linear(40, 30), prepare=lambda x: x.reshape(len(x), 6, 21)
    ),
}


def _with_random_state(model: nn.Module) -> nn.Module:
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.data.uniform_(0.3, 1.0)
    return model


def _images(name: str) -> Case:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = _with_random_state(LAYERS[name]().double())
        task = FunctionTask(model, lambda model, batch: model(batch))
        return Case(task, torch.randn(SAMPLES, 3, 7, 6, dtype=torch.float64), None)


class Tokens(nn.Module):
    """An embedding with a padding row that every sample looks up several times, tied to the head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 5, padding_idx=0)
        self.head = nn.Linear(5, 9, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.embedding(tokens))).logsumexp(-1).square().mean(-1)


class Bare(nn.Module):
    """Parameters that belong to no layer, and one that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(4))
        self.layer = nn.Linear(4, 3)
        self.shift = nn.Parameter(torch.randn(3))
        self.unused = nn.Parameter(torch.randn(2))
        self.idle = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return (self.layer(torch.sin(x * self.scale)) + self.shift).square().sum(1)


class Branching(nn.Module):
    """A model that vmap cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4))
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        rows = [self.layer(row) @ self.weight if float(row.sum()) > 0 else (row * self.weight).cos().sum() for row in x]
        return torch.stack(rows)


class FlatOverTokens(nn.Module):
    """A layer on (tokens, batch, features): the first dimension is not the samples'."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.positions = nn.Embedding(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.positions(torch.arange(x.shape[1]))
        return self.layer(x.transpose(0, 1)).tanh().square().sum((0, 2))


class Once(nn.Module):
    """Tokens, and positions that are looked up once for all samples: ids of shape (1, T), as in GPT-2 and BERT, or (T,)."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(9, 4), nn.Embedding(6, 4, padding_idx=1)
        self.head = nn.Linear(4, 3)
        self.shape = shape

    def forward(self, tokens: Tensor) -> Tensor:
        at = torch.arange(tokens.shape[1]).reshape(*self.shape, -1)
        return self.head(torch.tanh(self.tokens(tokens) + self.positions(at))).square().sum((1, 2))


class Distances(nn.Module):
    """A table looked up once for all samples, by pairs of positions, whose rows no model takes for a sample each."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.bias = nn.Linear(4, 4), nn.Embedding(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1])
        bias = self.bias(places[:, None] - places + 3).permute(2, 0, 1).unsqueeze(0)
        heads = self.mix(x).unflatten(2, (2, 2)).transpose(1, 2)
        return (torch.softmax(heads @ heads.mT + bias, dim=-1) @ heads).tanh().sum((1, 2, 3))


class Attending(nn.Module):
    """Attention with packed weights, called on its own."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.norm = nn.MultiheadAttention(4, 2, batch_first=True), nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.attention(x, x, x, need_weights=False)[0]).pow(3).sum((1, 2))


class Margins(Attending):
    """The same with a loss that is exactly zero, gradient included, where the first number is not positive."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (x[:, 0, 0] > 0)


class Experts(nn.Module):
    """Tokens are sent to one of two layers, to the second from the last two samples only."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        sent = x[..., 0] > 1
        y = self.first(x)
        y = y.masked_scatter(sent.unsqueeze(-1), self.second(x[sent]))
        return y.tanh().square().sum((1, 2))

    @staticmethod
    def batch() -> Tensor:
        x = _numbers(3, 4).clamp(max=1)
        x[:-2, :, 1:] *= 5  # the samples with the largest losses are among the others
        x[-2:, :, 0] = 1.5
        return x


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.Module], **options: Any) -> None:
        super().__init__()
        self.recurrence = kind(4, 3, batch_first=True, **options)
        self.head = nn.Linear(3 * (1 + bool(options.get("bidirectional"))), 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrence(x)[0]).tanh().sum((1, 2))


class Adapted(nn.Module):
    """An adapter of rank 2 beside a frozen layer, between a frozen embedding and the head that is tied to it."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.base = nn.Embedding(9, 5), nn.Linear(5, 5)
        self.head = nn.Linear(5, 9, bias=False)
        self.head.weight = self.embedding.weight
        self.requires_grad_(False)
        self.a, self.b = nn.Linear(5, 2, bias=False), nn.Linear(2, 5, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        return self.head(torch.tanh(self.base(x) + 2 * self.b(self.a(x)))).logsumexp(-1).square().mean(-1)


class Doubled(nn.Module):
    """A table and a layer that a sample goes through twice, the second time with the layer's weight turned round."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.layer = nn.Embedding(9, 4), nn.Linear(4, 4)
        self.back = nn.Linear(4, 4, bias=False)
        self.back.weight = self.layer.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = torch.tanh(self.layer(self.tokens(tokens)))
        return self.back(torch.sin(self.layer(x)) * self.tokens(tokens.flip(1))).square().sum((1, 2))


def _transposed_linear() -> nn.Module:
    kind = pytest.importorskip("transformers.pytorch_utils").Conv1D
    return nn.Sequential(kind(6, 4), nn.GELU(), kind(3, 6), Squares())


class Squares(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.square().flatten(1).sum(dim=1)


def _other(model: nn.Module, batch: Any) -> Case:
    return Case(FunctionTask(model.double(), lambda model, batch: model(batch)), batch, None)


def _tokens(*shape: int) -> Tensor:
    return torch.randint(9, (SAMPLES, *shape))


def _numbers(*shape: int) -> Tensor:
    return torch.randn(SAMPLES, *shape, dtype=torch.float64)


OTHERS: dict[str, Callable[[], Case]] = {
    "tied embedding": lambda: _other(Tokens(), _tokens(7) * torch.randint(2, (SAMPLES, 7))),
    "bare": lambda: _other(Bare(), _numbers(4)),
    "branching": lambda: _other(Branching(), _numbers(4)),
    "not by sample": lambda: _other(FlatOverTokens(), _numbers(5, 4)),
    "positions, (1, T)": lambda: _other(Once(1), _tokens(6)),
    "positions, (1, T), odd": lambda: _other(Once(1), _tokens(5)),
    "one position": lambda: _other(Once(1), _tokens(1)),
    "positions, (T,)": lambda: _other(Once(), _tokens(6)),
    "positions, (T,), two": lambda: _other(Once(), _tokens(2)),
    "distances": lambda: _other(Distances(), _numbers(4, 4)),
    "attention": lambda: _other(Attending(), _numbers(3, 4)),
    "losses of zero first": lambda: _other(Margins(), _numbers(3, 4).sort(dim=0).values),
    "experts": lambda: _other(Experts(), Experts.batch()),
    "lstm": lambda: _other(Recurrent(nn.LSTM, bidirectional=True), _numbers(3, 4)),
    "gru": lambda: _other(Recurrent(nn.GRU, num_layers=2), _numbers(3, 4)),
    "weight norm": lambda: _other(nn.Sequential(weight_norm(nn.Linear(4, 3)), Squares()), _numbers(4)),
    "transposed linear": lambda: _other(_transposed_linear(), _numbers(4)),
    "transposed linear over positions": lambda: _other(_transposed_linear(), _numbers(3, 4)),
    "adapter": lambda: _other(Adapted(), _tokens(4)),
    "used twice, and shared": lambda: _other(Doubled(), _tokens(4)),
}


def case(name: str) -> Case:
    if name in LAYERS:
        return _images(name)
    if name in OTHERS:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return OTHERS[name]()
    return make(name)


KINDS = (*LAYERS, *OTHERS, *CASES)
