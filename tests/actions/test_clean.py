"""Wrong labels put into real trainings are found, and every part of the way is what it says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score
from torch import nn
from torch.utils.data import TensorDataset

import diffin
from diffin import Trajectory
from diffin.actions.clean import SIGNALS, Suspects, clean
from diffin.actions.clean.fusion import fuse, gather
from diffin.actions.clean.latent import latent_classes
from diffin.actions.clean.neighbours import NEIGHBOURS, neighbour_shares
from diffin.actions.clean.single import confident_margin
from diffin.actions.clean.smoothing import _LAMBDAS, LeaveOneOut, Reference
from diffin.actions.clean.twins import twins
from diffin.errors import ScoringError
from diffin.tasks import Classification
from training import record


@dataclass(frozen=True)
class _Trained:
    task: Classification
    trajectory: Trajectory
    train: TensorDataset
    correct: np.ndarray[Any, Any]
    query: TensorDataset

    @property
    def wrong(self) -> np.ndarray[Any, Any]:
        return (self.train.tensors[1].numpy() != self.correct).astype(bool)

    def cleaned(self, **options: Any) -> Suspects:
        return clean(self.task, self.trajectory, self.train, progress=False, **options)


def _trained(path: Path, steps: int, kind: str = "any", rate: float = 0.25) -> _Trained:
    """Digits with wrong labels, after few steps or so many that the net knows every label by heart."""
    torch.manual_seed(0)
    x, y = load_digits(return_X_y=True)
    inputs, labels = torch.from_numpy((x - x.mean(axis=0)) / (x.std(axis=0) + 0.1)).float(), torch.from_numpy(y)
    order = torch.randperm(len(labels))
    inputs, labels = inputs[order], labels[order]
    given = labels[:600].clone()
    wrong = torch.randperm(600)[: round(rate * 600)]
    given[wrong] = (given[wrong] + (1 if kind == "pair" else torch.randint(1, 10, (len(wrong),)))) % 10
    task = Classification(
        nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 32), nn.GELU(), nn.Linear(32, 10))
    )
    train = TensorDataset(inputs[:600], given)
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=3e-3)
    trajectory = record(path / "run", task, train, steps=steps, batch_size=32, checkpoints=8, optimizer=optimizer)
    return _Trained(task, trajectory, train, labels[:600].numpy(), TensorDataset(inputs[600:900], labels[600:900]))


def _small(path: Path) -> _Trained:
    """A hundred of them, and a linear model."""
    whole = _trained(path / "whole", 1)
    task, train = Classification(nn.Linear(64, 10)), TensorDataset(*whole.train[:100])
    trajectory = record(path / "small", task, train, steps=60, batch_size=20, checkpoints=3, learning_rate=0.5)
    return _Trained(task, trajectory, train, whole.correct[:100], TensorDataset(*whole.query[:100]))


@pytest.fixture(scope="module")
def memorised(tmp_path_factory: pytest.TempPathFactory) -> _Trained:
    return _trained(tmp_path_factory.mktemp("memorised"), 900)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> _Trained:
    return _trained(tmp_path_factory.mktemp("stopped"), 120)


def test_of_labels_known_by_heart_the_wrong_ones_are_found_better_than_by_any_loss(memorised: _Trained) -> None:
    found = memorised.cleaned()
    with torch.no_grad():
        inputs, given = memorised.train.tensors
        assert (memorised.task.model(inputs).argmax(1) == given).double().mean() > 0.95
    reached = average_precision_score(memorised.wrong, found.probability)
    singles = ("mean_loss", "final_loss", "area_under_margin", "el2n", "confident")
    best = max(average_precision_score(memorised.wrong, found.ranking(name)) for name in singles)
    assert reached > 0.95
    assert reached > best + 0.02


def test_after_a_training_that_stopped_early_they_are_found_as_well_as_by_the_best_signal(stopped: _Trained) -> None:
    found = stopped.cleaned()
    reached = average_precision_score(stopped.wrong, found.probability)
    best = max(average_precision_score(stopped.wrong, found.ranking(name)) for name in found.signals)
    assert reached > best - 0.01


def test_probabilities_are_calibrated_and_suggestions_right(memorised: _Trained, stopped: _Trained) -> None:
    for trained in (memorised, stopped):
        found = trained.cleaned()
        assert found.noise_rate == pytest.approx(trained.wrong.mean(), abs=0.05)
        sure = found.probability > 0.9
        assert trained.wrong[sure].mean() > 0.9
        assert (found.suggested[sure] == trained.correct[sure]).mean() > 0.9
        assert (found.relabelled() == trained.correct).mean() > 0.9
        assert np.all(found.suggestion_probability <= found.probability + 1e-12)


def test_one_class_taken_for_the_next_is_seen_as_such(tmp_path: Path) -> None:
    trained = _trained(tmp_path, 900, "pair", 0.3)
    found = trained.cleaned()
    shifted = np.array([found.confusion[k, (k + 1) % 10] for k in range(10)])
    assert np.abs(shifted - 0.3).mean() < 0.1
    assert (found.confusion - np.diag(found.confusion.diagonal())).argmax(axis=1).tolist() == [
        (k + 1) % 10 for k in range(10)
    ]
    assert average_precision_score(trained.wrong, found.probability) > 0.9


def test_clean_data_stay(tmp_path: Path) -> None:
    found = _trained(tmp_path, 300, rate=0.0).cleaned()
    assert found.noise_rate < 0.03
    assert len(found.kept()) > 0.98 * len(found)


def test_the_result_does_not_depend_on_the_batch_size(stopped: _Trained) -> None:
    one, other = stopped.cleaned(batch_size=64), stopped.cleaned(batch_size=600)
    np.testing.assert_allclose(one.probability, other.probability, atol=1e-3)


def test_a_query_helps_where_noise_and_likeness_are_hard_to_tell_apart(tmp_path: Path) -> None:
    trained = _trained(tmp_path, 120, "pair", 0.45)
    without, with_query = trained.cleaned(), trained.cleaned(query=trained.query)
    precision = [average_precision_score(trained.wrong, found.probability) for found in (without, with_query)]
    assert precision[1] > max(precision[0], 0.9)


def test_signals_of_derivatives_stand_beside_the_others(tmp_path: Path) -> None:
    stopped = _small(tmp_path)
    own = [diffin.TracIn(), diffin.DiffIn(batch_size=64), diffin.Unrolled(propagation="segments", rank=4)]
    found = stopped.cleaned(query=stopped.query, self_influence=own, influence=diffin.TracIn())
    assert list(found.signals) == list(SIGNALS)
    tracin = diffin.self_influence(stopped.task, stopped.trajectory, stopped.train, estimator=own[0], progress=False)
    np.testing.assert_allclose(found.signals["self_influence_tracin"], tracin.influence)
    for name in ("gradient_norm", "self_influence_tracin", "query_influence"):
        assert average_precision_score(stopped.wrong, found.ranking(name)) > stopped.wrong.mean() + 0.2


def test_gradient_norms_are_those_of_single_gradients_up_to_one_factor(stopped: _Trained) -> None:
    found = stopped.cleaned(self_influence=[diffin.TracIn()]).signals["gradient_norm"]
    expected = np.zeros(5)
    loss = nn.CrossEntropyLoss()
    for checkpoint in stopped.trajectory.checkpoints:
        model = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 32), nn.GELU(), nn.Linear(32, 10))
        model.load_state_dict(checkpoint.state)
        for row in range(5):
            model.zero_grad()
            x, y = stopped.train[row]
            loss(model(x[None]), y[None]).backward()
            expected[row] += float(
                torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm()
            )
    np.testing.assert_allclose(found[:5] / found[0], expected / expected[0], rtol=1e-3)


def test_named_evidence_ranks_alone(stopped: _Trained) -> None:
    found = stopped.cleaned(evidence=["mean_loss"])
    order = np.argsort(-found.probability, kind="stable")
    assert np.all(np.diff(found.signals["mean_loss"][order]) <= 1e-9)
    with pytest.raises(ScoringError, match="no signal 'gradient_norm'"):
        stopped.cleaned(evidence=["gradient_norm"])
    with pytest.raises(ScoringError, match="without a query"):
        stopped.cleaned(influence=diffin.TracIn())


def test_what_is_saved_is_what_is_opened(stopped: _Trained, tmp_path: Path) -> None:
    found = stopped.cleaned()
    found.save(tmp_path / "suspects")
    again = Suspects.open(tmp_path / "suspects")
    for name in ("index", "given", "suggested", "probability", "suggestion_probability", "confusion"):
        np.testing.assert_array_equal(getattr(again, name), getattr(found, name))
    assert again.noise_rate == found.noise_rate
    assert list(again.signals) == list(found.signals)
    assert sorted([*again.suspects(0.3), *again.kept(0.3)]) == list(range(600))
    with pytest.raises(ScoringError, match="holds suspects already"):
        found.save(tmp_path / "suspects")
    (tmp_path / "suspects" / "suspects.parquet").write_bytes(b"no")
    with pytest.raises(ScoringError, match="damaged"):
        Suspects.open(tmp_path / "suspects")
    with pytest.raises(ScoringError, match="holds no suspects"):
        Suspects.open(tmp_path)
    with pytest.raises(ScoringError, match="threshold=2"):
        found.suspects(2)


def test_a_sample_without_a_finite_loss_is_neither_kept_back_nor_in_the_way(stopped: _Trained) -> None:
    inputs, given = stopped.train.tensors
    broken = inputs.clone()
    broken[7] = torch.nan
    found = clean(stopped.task, stopped.trajectory, TensorDataset(broken, given), progress=False)
    assert found.failed.tolist() == [7]
    assert np.isfinite(np.delete(found.probability, 7)).all()
    assert 7 in found.kept()


def _blobs(size: int = 90) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    generator = np.random.default_rng(0)
    labels = generator.integers(3, size=size)
    features = generator.standard_normal((size, 4)) + 3 * np.eye(3, 4)[labels]
    return features.astype(np.float32), labels


def test_left_out_predictions_are_those_of_fits_without_the_sample() -> None:
    features, labels = _blobs()
    targets = np.eye(3)[labels]
    reference = Reference(features[:5] + 0.1, targets[:5])
    for known in (None, reference):
        smooth = LeaveOneOut(features, targets, known)
        predicted = smooth(targets)
        x = features.astype(np.float64)
        mean, spread = x.mean(0), x.std(0)
        x = np.c_[(x - mean) / spread, np.ones(len(x))]
        errors = []
        for strength in (1e-4, 1e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0):
            rows = []
            for row in range(len(x)):
                rest = np.arange(len(x)) != row
                gram, moment = x[rest].T @ x[rest], x[rest].T @ targets[rest]
                if known is not None:
                    r = np.c_[(known.features.astype(np.float64) - mean) / spread, np.ones(5)]
                    gram, moment = gram + 3 * r.T @ r, moment + 3 * r.T @ known.targets
                rows.append(x[row] @ np.linalg.solve(gram + strength * len(x) * np.eye(5), moment))
            errors.append((((np.array(rows) - targets) ** 2).mean(), np.array(rows)))
        np.testing.assert_allclose(predicted, min(errors, key=lambda pair: pair[0])[1], atol=1e-8)


def test_pairs_are_left_out_together() -> None:
    features, labels = _blobs()
    targets = np.eye(3)[labels]
    pairs = np.array([[4, 9], [30, 77]])
    smooth = LeaveOneOut(features, targets, pairs=pairs)
    predicted = smooth(targets)
    x = features.astype(np.float64)
    x = np.c_[(x - x.mean(0)) / x.std(0), np.ones(len(x))]

    def without(out: list[int], row: int, strength: float) -> np.ndarray[Any, Any]:
        rest = np.setdiff1d(np.arange(len(x)), out)
        gram, moment = x[rest].T @ x[rest], x[rest].T @ targets[rest]
        found: np.ndarray[Any, Any] = x[row] @ np.linalg.solve(gram + strength * len(x) * np.eye(5), moment)
        return found

    (strength,) = [s for s in _LAMBDAS if np.allclose(predicted[0], without([0], 0, s), atol=1e-8)]
    for one, other in [*pairs, *pairs[:, ::-1]]:
        np.testing.assert_allclose(predicted[one], without([one, other], one, strength), atol=1e-8)


def test_near_copies_with_different_labels_are_twins_and_nothing_else_is() -> None:
    features, labels = _blobs()
    copies = np.array([3, 50, 81])
    noise = 0.01 * np.random.default_rng(2).standard_normal((3, 4)).astype(np.float32)
    everything = np.concatenate([features, features[copies] + noise])
    given = np.concatenate([labels, (labels[copies] + [1, 2, 0]) % 3])
    found = {tuple(pair) for pair in twins(everything, given).tolist()}
    # The third has the label of its original: the two agree, and both may speak.
    assert {(3, 90), (50, 91)} <= found
    assert not any(81 in pair for pair in found)
    assert len(found) <= 3


def test_which_of_two_near_copies_is_wrong_the_others_say() -> None:
    features, labels = _blobs(300)
    copies = np.arange(0, 300, 10)
    noise = 1e-3 * np.random.default_rng(2).standard_normal((len(copies), 4)).astype(np.float32)
    everything = np.concatenate([features, features[copies] + noise])
    given = np.concatenate([labels, (labels[copies] + 1) % 3])
    wrong = np.arange(len(given)) >= 300
    flat = np.zeros((len(given), 2))
    found = fuse(gather({0: everything, 10: everything}, flat, given, 3))
    assert average_precision_score(wrong, found.doubt) > 0.97
    single = LeaveOneOut(everything, np.eye(3)[given])(np.eye(3)[given])
    alone = -single[np.arange(len(given)), given]
    assert average_precision_score(wrong, found.doubt) > average_precision_score(wrong, alone) + 0.02


def test_neighbour_shares_are_those_of_a_plain_search() -> None:
    features, labels = _blobs()
    shares = neighbour_shares(features, labels, 3)
    centred = features - features.mean(0)
    for row in range(0, 90, 17):
        cosines = [
            -np.inf if other == row else float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
            for other, (a, b) in enumerate((centred[row], b) for b in centred)
        ]
        nearest = np.argsort(cosines)[::-1][:NEIGHBOURS]
        weights = np.exp((np.array(cosines)[nearest] - max(cosines)) / 0.1)
        expected = [weights[labels[nearest] == k].sum() / weights.sum() for k in range(3)]
        np.testing.assert_allclose(shares[row], expected, rtol=1e-4, atol=1e-7)


def test_latent_classes_undo_a_pair_flip_that_predictions_alone_cannot() -> None:
    features, labels = _blobs(600)
    wrong = np.random.default_rng(1).random(600) < 0.4
    given = np.where(wrong, (labels + 1) % 3, labels)
    smooth = LeaveOneOut(features, np.eye(3)[given])
    latent = latent_classes([smooth], np.ones(1), given, 3)
    alone = (smooth(np.eye(3)[given]).argmax(1) == labels).mean()
    assert (latent.posterior.argmax(1) == labels).mean() > max(alone, 0.9)
    np.testing.assert_allclose(latent.posterior.sum(1), 1)
    np.testing.assert_allclose(latent.confusion.sum(1), 1)


def test_confident_margin_takes_off_the_mean_of_each_class() -> None:
    probabilities = np.array([[0.9, 0.1], [0.7, 0.3], [0.4, 0.6]], dtype=np.float32)
    margin = confident_margin(probabilities, np.array([0, 0, 1]))
    np.testing.assert_allclose(margin, [0.9 - 0.8 - (0.1 - 0.6), 0.7 - 0.8 - (0.3 - 0.6), 0.0 - (0.4 - 0.8)], rtol=1e-5)
