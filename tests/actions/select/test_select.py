"""Selecting from a small pool with wrong labels, from a training to the folder and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pools import SIZE, Fit, pool, task
from torch.utils.data import DataLoader, TensorDataset

import diffin
from diffin.actions.select import METHODS, Iterated, Selection, select
from diffin.errors import DatasetError, DiffinError, ScoringError, TrajectoryError
from diffin.tasks import Regression

QUICK = Iterated(rounds=2)
BY_TRAINING = tuple(name for name in METHODS if name not in ("iterated", "random"))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> diffin.Trajectory:
    folder = tmp_path_factory.mktemp("whole") / "run"
    Fit(pool()[0])(np.arange(SIZE), folder, 7)
    return diffin.Trajectory.open(folder)


def same(a: Selection, b: Selection) -> None:
    assert (a.method, a.size, a.fractions) == (b.method, b.size, b.fractions)
    for first, second in zip(a.kept, b.kept, strict=True):
        np.testing.assert_array_equal(first.indices, second.indices)
        np.testing.assert_array_equal(first.weights, second.weights)


@pytest.mark.parametrize("method", BY_TRAINING)
def test_a_method_that_goes_by_a_training(method, whole) -> None:
    train, query, _ = pool()
    selection = select(
        task(), train, fractions=[0.5, 0.2], method=method, trajectory=whole, query=query, progress=False
    )
    assert selection.fractions == (0.2, 0.5)
    assert [len(kept.indices) for kept in selection.kept] == [24, 60]
    assert selection.cost.trainings == 1
    labels = train.tensors[1].numpy()
    share = labels[selection.at(0.5).indices].mean()
    assert abs(share - labels.mean()) < 1 / 60


def test_influence_keeps_the_lowest_of_each_class(whole) -> None:
    train, query, _ = pool()
    influence = diffin.score(task(), whole, train, query=query, progress=False).influence
    selection = select(task(), train, fractions=0.3, method="influence", trajectory=whole, query=query, progress=False)
    kept = selection.at(0.3).indices
    for label in (0, 1):
        own = np.flatnonzero(train.tensors[1].numpy() == label)
        inside = own[np.isin(own, kept)]
        assert influence[inside].max() <= influence[np.setdiff1d(own, inside)].min()


def test_without_classes_the_lowest_of_all(whole) -> None:
    train, query, _ = pool()
    influence = diffin.score(task(), whole, train, query=query, progress=False).influence
    selection = select(
        task(),
        train,
        fractions=0.3,
        method="influence",
        trajectory=whole,
        query=query,
        class_balanced=False,
        progress=False,
    )
    np.testing.assert_array_equal(selection.at(0.3).indices, np.sort(np.argsort(influence)[:36]))
    np.testing.assert_array_equal(selection.at(0.3).weights, 1)


def test_gradient_norms_are_those_of_single_samples(whole) -> None:
    from diffin.actions.select.evidence import Evidence, Reading, Whole

    train, _, _ = pool()
    known = Evidence(task(), train, None, Whole(whole, None, SIZE, 0, None), Reading(progress=False))
    steps = [c.step for c in whole.checkpoints]
    early = [step for step in steps if 0 < step <= 0.2 * whole.total_steps] or [steps[1]]
    model = task().model
    expected = np.zeros(SIZE)
    for checkpoint in whole.checkpoints:
        if checkpoint.step in early:
            model.load_state_dict(checkpoint.state)
            for index in range(SIZE):
                model.zero_grad()
                inputs, label = train[index]
                torch.nn.functional.cross_entropy(model(inputs[None]), label[None]).backward()
                expected[index] += sum(float(p.grad.square().sum()) for p in model.parameters()) ** 0.5
    found = known.gradient_norm
    np.testing.assert_allclose(found / found.mean(), expected / expected.mean(), rtol=1e-6)


def test_a_cut_drops_the_hardest(whole) -> None:
    from diffin.signals import observe

    train, _, _ = pool()
    margin = observe(task(), whole, train, progress=False).area_under_margin
    selection = select(
        task(), train, fractions=0.4, method="ccs", trajectory=whole, cut=0.5, class_balanced=False, progress=False
    )
    assert margin[selection.kept[0].indices].min() >= np.sort(margin)[SIZE // 2]


def test_without_a_trajectory_fit_trains_on_everything_once(tmp_path: Path) -> None:
    train, _, _ = pool()
    fit = Fit(train)
    selection = select(task(), train, fractions=0.2, method="aum", fit=fit, output=tmp_path / "a", progress=False)
    assert fit.calls == 1
    assert selection.cost.trainings == 1
    assert selection.cost.training_seconds > 0
    again = select(task(), train, fractions=[0.2, 0.4], method="aum", fit=fit, output=tmp_path / "a", progress=False)
    assert fit.calls == 1
    np.testing.assert_array_equal(again.at(0.2).indices, selection.at(0.2).indices)


def test_iterating_lowers_the_loss_on_a_query_it_has_not_seen() -> None:
    train, query, wrong = pool()
    fit = Fit(train)
    selection = select(
        task(), train, fractions=0.25, fit=fit, query=query, settings=Iterated(rounds=5), progress=False, seed=1
    )
    losses = selection.details["held_out_loss"]["0.25"]
    assert fit.calls == selection.cost.trainings == 5
    assert losses[-1] < losses[0]
    assert wrong[selection.at(0.25).indices].mean() < 0.5 * wrong.mean()


def test_iterating_is_the_same_for_the_same_seed_and_keeps_classes() -> None:
    train, _, _ = pool()
    fraction = 0.25
    first, second = (
        select(task(), train, fractions=fraction, fit=Fit(train), settings=QUICK, progress=False) for _ in range(2)
    )
    same(first, second)
    kept, labels = first.kept[0].indices, train.tensors[1].numpy()
    assert len(kept) == round(fraction * SIZE)
    assert abs(labels[kept].mean() - labels.mean()) < 1 / len(kept)


def test_nothing_is_trained_where_everything_is_kept() -> None:
    train, _, _ = pool()
    fit = Fit(train)
    selection = select(task(), train, fractions=1.0, fit=fit, progress=False)
    assert fit.calls == 0
    np.testing.assert_array_equal(selection.kept[0].indices, np.arange(SIZE))


def test_iterating_about_a_query_and_by_another_estimator() -> None:
    train, query, _ = pool()
    for settings in (
        Iterated(rounds=2, about="query"),
        Iterated(rounds=2, trust=False, estimator=diffin.Unrolled(propagation="steps")),
        Iterated(rounds=2, estimator=diffin.TracIn()),
    ):
        selection = select(
            task(), train, fractions=0.25, fit=Fit(train), query=query, settings=settings, progress=False
        )
        assert len(selection.kept[0].indices) == 30


def test_iterating_takes_a_task_without_classes() -> None:
    train, _, _ = pool()
    data = TensorDataset(train.tensors[0], train.tensors[1].double()[:, None])

    def fit(indices, folder, seed) -> None:
        torch.manual_seed(seed)
        model = torch.nn.Linear(4, 1).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with diffin.Recorder(folder, model, optimizer, dataset_size=SIZE, total_steps=12, checkpoints=3) as recorder:
            for batch in torch.from_numpy(indices).split(8)[:12] * 4:
                if recorder.steps_taken == 12:
                    break
                inputs, targets = data[batch]
                torch.nn.functional.mse_loss(model(inputs), targets).backward()
                optimizer.step()
                recorder.step(batch)
                optimizer.zero_grad()

    asked = Regression(torch.nn.Linear(4, 1).double())
    selection = select(asked, data, fractions=0.4, fit=fit, settings=QUICK, progress=False)
    assert len(selection.kept[0].indices) == 48


def test_a_subset_that_is_no_better_than_the_first_is_not_taken(caplog: pytest.LogCaptureFixture) -> None:
    from diffin.actions.select.shares import chosen, random_rule

    train, query, _ = pool()
    fits = iter([Fit(train, steps=60), Fit(train, steps=1)])

    def worse(indices, folder, seed) -> None:
        next(fits)(indices, folder, seed)

    selection = select(
        task(), train, fractions=0.25, fit=worse, query=query, settings=Iterated(rounds=2), progress=False
    )
    assert "the random subset it began with is kept" in caplog.text
    start = chosen(random_rule(0), train.tensors[1].numpy(), np.arange(SIZE), 30)
    np.testing.assert_array_equal(selection.kept[0].indices, start)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_subset_of_the_best_round_is_kept(seed) -> None:
    train, query, _ = pool()
    fit, subsets = Fit(train, steps=8), []

    def remembered(indices, folder, seed) -> None:
        subsets.append(indices)
        fit(indices, folder, seed)

    selection = select(
        task(),
        train,
        fractions=0.25,
        fit=remembered,
        query=query,
        settings=Iterated(rounds=3, last=0.2),
        seed=seed,
        progress=False,
    )
    best = int(np.argmin(selection.details["held_out_loss"]["0.25"]))
    equal = [np.array_equal(selection.kept[0].indices, subset) for subset in subsets]
    assert equal == [number == best for number in range(3)]


def test_what_is_saved_is_what_is_opened(tmp_path: Path) -> None:
    train, _, _ = pool()
    selection = select(task(), train, fractions=[0.1, 0.35], method="random", output=tmp_path / "a", progress=False)
    opened = Selection.open(tmp_path / "a")
    same(selection, opened)
    assert (opened.cost, opened.details) == (selection.cost, selection.details)
    subset = opened.subset(train, 0.1)
    torch.testing.assert_close(subset[3][0], train[int(opened.at(0.1).indices[3])][0])
    with pytest.raises(DiffinError, match=r"holds 0.1, 0.35"):
        opened.at(0.2)
    (tmp_path / "a" / "selection.parquet").write_bytes(b"PAR1")
    with pytest.raises(ScoringError, match="damaged"):
        Selection.open(tmp_path / "a")
    with pytest.raises(ScoringError, match="no selection"):
        Selection.open(tmp_path)


def test_a_finished_selection_is_read_and_another_is_refused(tmp_path: Path) -> None:
    train, _, _ = pool()
    fit = Fit(train)
    first = select(task(), train, fractions=0.2, fit=fit, settings=QUICK, output=tmp_path, progress=False)
    again = select(task(), train, fractions=0.2, fit=fit, settings=QUICK, output=tmp_path, progress=False)
    same(first, again)
    assert fit.calls == 2
    with pytest.raises(ScoringError, match=r"another selection.*seed is 0 there and 1 here"):
        select(task(), train, fractions=0.2, fit=fit, settings=QUICK, seed=1, output=tmp_path, progress=False)
    with pytest.raises(ScoringError, match=r"selection: rounds is 2 there and 3 here\. Pass"):
        select(task(), train, fractions=0.2, fit=fit, settings=Iterated(rounds=3), output=tmp_path, progress=False)
    with pytest.raises(ScoringError, match=r"selection: method is 'iterated' there and 'random' here\. Pass"):
        select(task(), train, fractions=0.2, method="random", seed=1, output=tmp_path, progress=False)
    other = select(task(), train, fractions=0.2, method="random", seed=1, output=tmp_path, resume=False, progress=False)
    same(other, Selection.open(tmp_path))


def test_a_loader_is_read_as_its_data_set() -> None:
    train, _, _ = pool()
    loader = DataLoader(train, batch_size=7, shuffle=True)
    same(
        select(task(), train, fractions=0.2, method="random", progress=False),
        select(task(), loader, fractions=0.2, method="random", progress=False),
    )


def test_mistakes_are_named(whole) -> None:
    train, query, _ = pool()
    asked = {"fractions": 0.2, "progress": False}
    with pytest.raises(DiffinError, match="method='best': pass one of iterated, random"):
        select(task(), train, method="best", **asked)
    with pytest.raises(DiffinError, match="pass fit="):
        select(task(), train, **asked)
    with pytest.raises(DiffinError, match="goes by a training on all"):
        select(task(), train, method="aum", **asked)
    with pytest.raises(DiffinError, match="goes by no training but those on subsets"):
        select(task(), train, trajectory=whole, fit=Fit(train), **asked)
    with pytest.raises(DatasetError, match="about='query' asks about a query"):
        select(task(), train, fit=Fit(train), settings=Iterated(about="query"), **asked)
    with pytest.raises(DatasetError, match="asks about a query"):
        select(task(), train, method="influence", trajectory=whole, **asked)
    with pytest.raises(DiffinError, match="leave them out"):
        select(task(), train, method="random", settings=QUICK, **asked)
    with pytest.raises(DiffinError, match=r"recorded on 120 samples .* holds 60"):
        select(task(), query, method="aum", trajectory=whole, **asked)
    with pytest.raises(DiffinError, match=r"cut=0\.2 is of stratified and ccs"):
        select(task(), train, method="random", cut=0.2, **asked)
    with pytest.raises(DiffinError, match=r"cut=1\.2: pass the share"):
        select(task(), train, method="ccs", trajectory=whole, cut=1.2, **asked)
    with pytest.raises(DiffinError, match="fractions=2"):
        select(task(), train, method="random", fractions=2)
    with pytest.raises(DatasetError, match="does not know its length"):
        select(task(), _Endless(), method="random", **asked)
    for settings in (
        {"rounds": 0},
        {"first": 0.0},
        {"momentum": 1.0},
        {"about": "test"},
        {"estimator": diffin.Replay()},
        {"estimator": diffin.MoSo()},
    ):
        with pytest.raises(DiffinError, match=next(iter(settings))):
            Iterated(**settings)


class _Endless:
    """An iterable that does not say how much it holds."""

    def __iter__(self):
        return iter(pool()[0])


def test_a_fit_that_records_another_size_is_refused(tmp_path: Path) -> None:
    train, _, _ = pool()
    smaller = Fit(TensorDataset(*(t[:60] for t in train.tensors)))

    def fit(indices, folder, seed) -> None:
        smaller(indices % 60, folder, seed)

    with pytest.raises(TrajectoryError, match=r"recorded dataset_size=60.*holds 120"):
        select(task(), train, fractions=0.2, fit=fit, settings=QUICK, progress=False)
