"""Operations whose slope jumps are found in the graph of the loss, and smooth ones are not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffin.derivatives.kinks import kinks
from diffin.task import PerSampleLoss, frozen
from diffin.tasks import FunctionTask

BENT: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky": F.leaky_relu,
    "hardswish": F.hardswish,
    "clamped": lambda x: x.clamp(min=0),
    "absolute": torch.abs,
    "largest": lambda x: x.amax(dim=1),
    "maximum": lambda x: torch.maximum(x, -x),
    "pooled": lambda x: F.max_pool1d(x, 2),
    "the upper half": lambda x: x.topk(2).values,
}
SMOOTH: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "elu": F.elu,
    "softmax": lambda x: x.softmax(dim=1),
    "normalised": lambda x: F.layer_norm(x, (6,)),
    "attended": lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None]),
    "pooled by the mean": lambda x: F.avg_pool1d(x, 2),
    "masked": lambda x: x.masked_fill(x > 0, -1e9).softmax(dim=1),
}


def found(function: Callable[[Tensor], Tensor]) -> set[str]:
    model = nn.Linear(4, 6)
    task = FunctionTask(model, lambda model, batch: function(model(batch)).square().sum(dim=-1))
    with frozen(model):
        return kinks(PerSampleLoss(task), torch.randn(3, 4))


@pytest.mark.parametrize("name", BENT)
def test_what_is_bent_is_named(name: str) -> None:
    assert len(found(BENT[name])) == 1


@pytest.mark.parametrize("name", SMOOTH)
def test_what_is_smooth_is_not(name: str) -> None:
    assert found(SMOOTH[name]) == set()


def test_what_no_parameter_goes_through_does_not_count() -> None:
    model = nn.Linear(4, 6)
    task = FunctionTask(model, lambda model, batch: model(batch.relu()).square().sum(dim=1))
    with frozen(model):
        assert kinks(PerSampleLoss(task), torch.randn(3, 4)) == set()
