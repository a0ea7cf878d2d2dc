"""What a round's model is asked about the pool: once, and by weights that are the same for all rounds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pools import SIZE, Fit, network, pool
from torch import nn

import diffin
from diffin.actions.select import Iterated, asking, select
from diffin.actions.select.asking import Pool
from diffin.errors import DiffinError, TaskError
from diffin.sources import open_source
from diffin.tasks import Classification


class Counted:
    """A data set that counts how often it is read."""

    def __init__(self, data) -> None:
        self.data, self.reads = data, 0

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index):
        self.reads += 1
        return self.data[index]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> diffin.Trajectory:
    folder = tmp_path_factory.mktemp("judging") / "run"
    Fit(pool()[0])(np.arange(0, SIZE, 3), folder, 7)
    return diffin.Trajectory.open(folder)


def asked(task: Classification, train, query=None) -> Pool:
    source = open_source(train)
    of_query = None if query is None else open_source(query)
    return Pool(task, source, of_query, None, np.arange(SIZE), lambda *_: None)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_without_a_query_the_pool_is_read_once_for_both_losses(smoothing: float, run) -> None:
    train = Counted(pool()[0])
    weights = torch.tensor([1.0, 3.0], dtype=torch.float64)
    task = Classification(network(0), label_smoothing=smoothing, class_weights=weights)
    found = asking.look(asked(task, train), Iterated(), run)
    assert train.reads == SIZE
    model = network(0)
    model.load_state_dict(run.final.state)
    inputs, labels = pool()[0].tensors
    with torch.no_grad():
        logits = model(inputs)
    own = F.cross_entropy(logits, labels, weight=weights, label_smoothing=smoothing, reduction="none")
    np.testing.assert_allclose(found.own, own.numpy(), rtol=1e-12)
    np.testing.assert_allclose(found.plain, F.cross_entropy(logits, labels, reduction="none").numpy(), rtol=1e-12)


def test_what_is_not_asked_for_is_not_read(run) -> None:
    train, query = Counted(pool()[0]), pool()[1]
    task = Classification(network(0))
    with_query = asked(task, train, query)
    found = asking.look(with_query, Iterated(), run)
    assert (found.own, len(found.plain), train.reads) == (None, SIZE, SIZE)
    for settings in (Iterated(trust=False), Iterated(about="query")):
        nothing = asking.look(with_query, settings, run)
        assert (nothing.own, nothing.plain) == (None, None)
    assert train.reads == SIZE
    found = asking.look(asked(task, train), Iterated(trust=False), run)
    assert (len(found.own), found.plain, train.reads) == (SIZE, None, 2 * SIZE)


def test_a_task_that_never_calls_its_model_is_told_what_to_pass(run) -> None:
    class Aside(Classification):
        def losses(self, batch):
            x, y = batch
            return F.cross_entropy(nn.Sequential.forward(self.model, x), y, reduction="none")

    with pytest.raises(TaskError, match=r"Iterated\(trust=False\)"):
        asking.look(asked(Aside(network(0)), pool()[0]), Iterated(), run)


def test_all_rounds_are_judged_by_the_same_weights() -> None:
    generator = np.random.default_rng(0)
    own, belief = generator.random((3, 20)), generator.random(20)
    own[1, 4] = np.nan
    kept = [i for i in range(20) if i != 4]
    expected = [sum(belief[i] * losses[i] for i in kept) / sum(belief[i] for i in kept) for losses in own]
    np.testing.assert_allclose(asking.on_pool(own, belief), expected)
    np.testing.assert_allclose(asking.on_pool(own, np.zeros(20)), own[:, kept].mean(axis=1))
    with pytest.raises(DiffinError, match="no sample has a finite loss"):
        asking.on_pool(own * np.nan, belief)


def test_a_resumed_selection_without_a_query_judges_the_rounds_before_again(tmp_path: Path) -> None:
    train, _, _ = pool()
    calls = {"fractions": 0.3, "seed": 3, "progress": False, "settings": Iterated(rounds=3)}
    whole = select(Classification(network(0)), train, fit=Fit(train), **calls)

    class Stops(Fit):
        def __call__(self, indices, folder, seed) -> None:
            if self.calls == 2:
                raise KeyboardInterrupt
            super().__call__(indices, folder, seed)

    with pytest.raises(KeyboardInterrupt):
        select(Classification(network(0)), train, fit=Stops(train), output=tmp_path, **calls)
    first = np.load(tmp_path / "rounds" / "0.3" / "round-002.npz")["losses"]
    resumed = select(Classification(network(0)), train, fit=Fit(train), output=tmp_path, **calls)
    assert resumed.details["held_out_loss"] == whole.details["held_out_loss"]
    np.testing.assert_array_equal(resumed.kept[0].indices, whole.kept[0].indices)
    assert resumed.details["held_out_loss"]["0.3"][:2] != first.tolist()  # by what is believed two rounds later
