"""A task gives one finite, independent, repeatable loss per sample; whatever else it gives is refused with advice."""

from __future__ import annotations

from collections import UserDict, namedtuple
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffin.batches import batch_size, digest, select
from diffin.errors import DatasetError, TaskError, TrajectoryError
from diffin.loss_checks import check_losses
from diffin.task import PerSampleLoss, frozen
from diffin.tasks import Classification, FunctionTask, Regression

X, Y = torch.randn(8, 5), torch.randint(3, (8,))


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))


def losing(function: Any) -> FunctionTask:
    return FunctionTask(model(), function)


@pytest.mark.parametrize(
    ("function", "advice"),
    [
        (lambda m, b: F.cross_entropy(m(b[0]), b[1]), r"reduction='none'"),
        (lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="none")[:, None], r"return shape \(8,\)"),
        (lambda m, b: m(b[0]).argmax(dim=1), "floating-point"),
        (lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="none").tolist(), "returned list"),
        (lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="none") / 0, "8 of 8 samples is not finite"),
        (lambda m, b: F.cross_entropy(F.dropout(m(b[0])), b[1], reduction="none"), "functional dropout"),
        (lambda m, b: F.cross_entropy(m(b[0]).detach(), b[1], reduction="none"), r"without torch\.no_grad"),
        (lambda m, b: (m(b[0]) - m(b[0]).mean(dim=0)).square().sum(dim=1), "when other samples leave the batch"),
        (
            lambda m, b: F.cross_entropy(m(b[0]) @ m(b[0]).T, torch.arange(len(b[0])), reduction="none"),
            "in-batch negatives",
        ),
    ],
    ids=[
        "reduced",
        "extra dimension",
        "integers",
        "list",
        "infinite",
        "random",
        "detached",
        "batch mean",
        "contrastive",
    ],
)
def test_losses_that_cannot_be_used_are_refused_with_advice(function: Any, advice: str) -> None:
    with pytest.raises(TaskError, match=advice):
        check_losses(losing(function), (X, Y))


def test_batch_statistics_are_frozen_and_so_do_not_couple_samples() -> None:
    net = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3)).train()
    before = {name: t.clone() for name, t in net.state_dict().items()}
    check_losses(Classification(net), (X, Y))
    assert net.training
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())


def test_mode_and_buffers_come_back_after_an_error() -> None:
    net = nn.Sequential(nn.BatchNorm1d(5), nn.Dropout())
    net[1].eval()

    def spoil() -> None:
        with frozen(net):
            assert not net[0].training
            net[0].running_mean.fill_(7)
            net[0].train()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        spoil()
    assert net[0].training
    assert not net[1].training
    assert float(net[0].running_mean.abs().max()) == 0


def test_losses_are_taken_at_the_given_parameters_and_the_model_is_not_written() -> None:
    net = model()
    loss = PerSampleLoss(Classification(net))
    other = {name: t + 1 for name, t in loss.parameters.items()}
    before = {name: t.clone() for name, t in net.state_dict().items()}
    with frozen(net):
        moved = loss(other, (X, Y))
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    net.load_state_dict(other)
    torch.testing.assert_close(moved, F.cross_entropy(net(X).double(), Y, reduction="none"))


def test_a_module_that_writes_a_buffer_in_evaluation_mode_changes_nobody_s_state() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(5, 3)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.linear(x)

    net = Counting()
    state = {name: t.clone() for name, t in net.state_dict().items()}
    with frozen(net):
        loss = PerSampleLoss(Classification(net), state)
        loss(loss.parameters, (X, Y))
    assert float(state["calls"]) == 0
    assert float(net.calls) == 0


Pair = namedtuple("Pair", ["x", "y"])


class Named(nn.Module):
    """Called by keyword, answers like a Hugging Face model."""

    def __init__(self) -> None:
        super().__init__()
        self.net = model()

    def forward(self, values: Tensor, scale: Tensor | None = None) -> Any:
        logits = self.net(values)
        return namedtuple("Output", ["logits"])(logits if scale is None else logits * scale[:, None])


@pytest.mark.parametrize(
    ("net", "batch"),
    [
        (model(), (X, Y)),
        (model(), [X, Y]),
        (model(), Pair(X, Y)),
        (model(), ((X,), Y)),
        (Named(), {"values": X, "labels": Y}),
        (Named(), UserDict({"values": X, "scale": torch.ones(8), "label": Y})),
        (Named(), ({"values": X}, Y)),
        (model(), (X, F.one_hot(Y, 3).float())),
    ],
    ids=["tuple", "list", "namedtuple", "positional", "dict", "encoding", "keyword pair", "probabilities"],
)
def test_classification_takes_every_usual_batch(net: nn.Module, batch: Any) -> None:
    task = Classification(net)
    check_losses(task, batch)
    with frozen(net):
        loss = PerSampleLoss(task)
        losses = loss(loss.parameters, loss.to_device(batch))
    inner = net.net if isinstance(net, Named) else net
    torch.testing.assert_close(losses, F.cross_entropy(inner(X).double(), Y, reduction="none"))
    assert losses.dtype == torch.float64
    assert len(task.predictions(batch)) == len(task.labels(batch)) == 8


def test_classification_weighs_and_smooths_as_training_does() -> None:
    net, weights = model(), torch.tensor([1.0, 2.0, 0.5])
    losses = Classification(net, label_smoothing=0.1, class_weights=weights).losses((X, Y))
    torch.testing.assert_close(
        losses.float(), F.cross_entropy(net(X), Y, weight=weights, label_smoothing=0.1, reduction="none")
    )


def test_regression_averages_over_the_outputs_of_a_sample() -> None:
    net = model()
    targets = torch.randn(8, 3)
    torch.testing.assert_close(Regression(net).losses((X, targets)).float(), (net(X) - targets).square().mean(dim=1))
    one = nn.Linear(5, 1)
    torch.testing.assert_close(
        Regression(one).losses((X, targets[:, 0])).float(), (one(X)[:, 0] - targets[:, 0]).square()
    )
    with pytest.raises(TaskError, match="must agree"):
        Regression(net).losses((X, targets[:, 0]))


@pytest.mark.parametrize(
    ("batch", "advice"),
    [
        ({"x": X}, "none of"),
        ((X, Y, torch.arange(8)), "of length 3"),
        (X, "must be"),
    ],
)
def test_a_batch_that_has_no_target_is_named(batch: Any, advice: str) -> None:
    with pytest.raises(TaskError, match=advice):
        Classification(model()).losses(batch)


def test_a_model_without_anything_to_study_is_refused() -> None:
    with pytest.raises(TaskError, match="no parameter"):
        PerSampleLoss(Classification(model().requires_grad_(False)))
    with pytest.raises(TaskError, match="no parameters"):
        _ = Classification(nn.Identity()).device


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        (lambda s: {**s, "extra": torch.zeros(1)}, "'extra' that the model of the task lacks"),
        (lambda s: {**s, "0.bias": torch.zeros(7)}, r"shape \(7,\) in the checkpoint and \(6,\)"),
        (lambda s: {k: v for k, v in s.items() if k != "2.weight"}, "lacks 1 of the model's 4 parameters, '2.weight'"),
    ],
)
def test_a_state_of_another_model_is_refused(change: Any, advice: str) -> None:
    net = model()
    with pytest.raises(TrajectoryError, match=advice):
        PerSampleLoss(Classification(net), change(net.state_dict()))


def test_selecting_rows_keeps_what_has_no_batch_dimension() -> None:
    batch = {
        "x": X,
        "names": list("abcdefgh"),
        "scale": torch.tensor(2.0),
        "pair": Pair(X, [X, Y]),
        "mask": torch.ones(3),
    }
    rows = select(batch, slice(2, 5))
    assert batch_size(rows) == 3
    assert rows["names"] == ["c", "d", "e"]
    assert rows["scale"].ndim == 0
    assert rows["mask"].shape == (3,)
    torch.testing.assert_close(rows["pair"].y[1], Y[2:5])
    assert select(batch, torch.tensor([7, 0]))["names"] == ["h", "a"]


def test_a_batch_without_tensors_is_named() -> None:
    with pytest.raises(DatasetError, match="no tensor with a batch dimension"):
        batch_size(["a", "b"])


def test_wrappers_of_training_are_taken_off() -> None:
    net = model()
    assert Classification(torch.compile(net)).model is net
    assert Classification(nn.DataParallel(net)).model is net


def test_an_embedding_that_rewrites_its_weight_is_refused() -> None:
    task = FunctionTask(nn.Embedding(5, 3, max_norm=1.0), lambda m, b: m(b).sum(dim=(1, 2)))
    with pytest.raises(TaskError, match="max_norm"):
        check_losses(task, torch.randint(5, (4, 2)))


@pytest.mark.parametrize("scale", [1.0, 10.0, 1e3])
def test_rounding_is_not_taken_for_coupling(scale: float) -> None:
    torch.manual_seed(0)
    for width in (33, 65, 129):
        net = nn.Sequential(nn.Linear(64, width), nn.GELU(), nn.Linear(width, 1))
        net[2].weight.data *= scale
        for size in (2, 3, 5, 17):
            check_losses(Regression(net), (torch.randn(size, 64), torch.zeros(size)))


def test_texts_of_a_batch_are_cut_with_its_tensors() -> None:
    batch = [("a", "b", "c"), torch.arange(3)]
    assert select(batch, slice(0, 2))[0] == ("a", "b")
    assert digest(batch) != digest([("a", "b", "d"), torch.arange(3)])
    encoding = UserDict({"x": X})
    assert isinstance(select(encoding, slice(0, 2)), UserDict)


def test_regression_targets_of_another_shape_are_refused() -> None:
    with pytest.raises(TaskError, match="must agree"):
        Regression(nn.Linear(5, 2)).losses((torch.randn(4, 5), torch.randn(2, 4)))


def test_a_weight_that_a_hook_computes_is_as_it_was() -> None:
    net = nn.Sequential(torch.nn.utils.weight_norm(nn.Linear(5, 3)))
    before = net[0].weight
    task = Classification(net)
    with frozen(net):
        loss = PerSampleLoss(task)
        with torch.inference_mode():
            loss({name: t + 1 for name, t in loss.parameters.items()}, (X, Y))
        assert net[0].weight is not before
    assert net[0].weight is before
