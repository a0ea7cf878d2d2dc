"""Losses at a state, against one sample at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from diffin.losses import losses_at
from diffin.task import PerSampleLoss
from diffin.tasks import Classification


def net(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3)).double()


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(7, 4, generator=generator, dtype=torch.float64)
    return list(zip(inputs.split(3), torch.randint(3, (7,), generator=generator).split(3), strict=True))


def test_they_are_those_of_the_model_in_that_state_one_sample_at_a_time() -> None:
    model, trained = net(0), net(1)
    trained.train()(torch.randn(20, 4, dtype=torch.float64))  # moves its statistics
    found = losses_at(PerSampleLoss(Classification(model), trained.state_dict()), batches())
    trained.eval()
    with torch.no_grad():
        expected = [
            float(F.cross_entropy(trained(x[None]), y[None])) for part in batches() for x, y in zip(*part, strict=True)
        ]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_the_model_is_left_as_it_was_and_other_parameters_may_be_given() -> None:
    model, other = net(0).train(), net(2)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    loss = PerSampleLoss(Classification(model))
    at = losses_at(loss, batches(), at=dict(other.named_parameters()))
    np.testing.assert_array_equal(at, losses_at(PerSampleLoss(Classification(model), other.state_dict()), batches()))
    assert model.training
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_outputs_are_handed_on_and_the_hook_is_taken_off_even_after_a_failure() -> None:
    model = net(0)
    loss, seen = PerSampleLoss(Classification(model)), []
    losses_at(loss, batches(), heed=lambda batch, output: seen.append((len(batch[0]), tuple(output.shape))))
    assert seen == [(3, (3, 3)), (3, (3, 3)), (1, (1, 3))]

    def fails(*_: object) -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        losses_at(loss, batches(), heed=fails)
    assert not model._forward_hooks


def test_batches_that_are_kept_can_be_differentiated_later() -> None:
    kept: list[torch.Tensor] = []
    loss = PerSampleLoss(Classification(net(0)))
    losses_at(loss, ((kept.append(x * 1) or kept[-1], y) for x, y in batches()))
    assert not any(t.is_inference() for t in kept)
