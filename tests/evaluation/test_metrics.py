"""Agreement with a truth whose properties are known."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy.stats import spearmanr

from diffin.errors import EvaluationError
from diffin.evaluation import Truth, agreement


def truth_of(replicas: np.ndarray, **options: object) -> Truth:
    replicas = np.atleast_2d(replicas)
    groups = tuple(np.arange(replicas.shape[1])[:, None])
    return Truth("loo", groups, replicas, **options)  # type: ignore[arg-type]


def test_the_coefficients_are_those_of_scipy() -> None:
    generator = np.random.default_rng(0)
    actual = generator.normal(size=80)
    estimate = (actual + generator.normal(size=80)) ** 3
    found = agreement(estimate, truth_of(actual))
    assert found.spearman == pytest.approx(spearmanr(estimate, actual).statistic)
    assert found.pearson == pytest.approx(np.corrcoef(estimate, actual)[0, 1])
    assert found.samples == 80
    assert found.ceiling is None


def test_the_interval_covers_the_coefficient_of_the_population() -> None:
    generator, rho, covered = np.random.default_rng(1), 0.6, 0
    spearman_of_population = 6 / np.pi * np.arcsin(rho / 2)
    for _ in range(200):
        actual = generator.normal(size=60)
        estimate = rho * actual + np.sqrt(1 - rho**2) * generator.normal(size=60)
        found = agreement(estimate, truth_of(actual), bootstrap=200)
        low, high = found.spearman_interval
        assert low <= found.spearman <= high
        covered += low <= spearman_of_population <= high
    assert 175 <= covered <= 199


@pytest.mark.parametrize("noise", [0.5, 1.0, 3.0])
def test_ceiling_and_bound_are_what_a_second_truth_and_the_noiseless_one_reach(noise: float) -> None:
    generator = np.random.default_rng(2)
    true = generator.normal(size=20_000)
    first, second = (true + noise * generator.normal(size=(8, 20_000)) for _ in range(2))
    truth = truth_of(first)
    found = agreement(true, truth, bootstrap=0)
    assert found.ceiling == pytest.approx(spearmanr(first.mean(0), second.mean(0)).statistic, abs=0.03)
    assert found.bound == pytest.approx(found.spearman, abs=0.03)


def test_failed_samples_are_left_out_and_counted() -> None:
    actual = np.arange(10.0)
    estimate, with_gaps = actual.copy(), actual.copy()
    with_gaps[[1, 7]] = np.nan
    found = agreement(with_gaps, truth_of(actual))
    assert (found.samples, found.left_out, found.spearman) == (8, 2, pytest.approx(1))
    found = agreement(estimate, truth_of(with_gaps))
    assert (found.samples, found.left_out, found.spearman) == (8, 2, pytest.approx(1))


@pytest.mark.parametrize(
    ("estimate", "actual", "said"),
    [
        (np.zeros(9), np.arange(9.0), "the estimate is the same"),
        (np.arange(9.0), np.ones(9), "the truth is the same"),
        (np.arange(2.0), np.arange(2.0), "2 samples can be compared"),
    ],
)
def test_what_has_no_correlation_says_so_and_warns_of_nothing(
    estimate: np.ndarray, actual: np.ndarray, said: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = agreement(estimate, truth_of(actual))
    assert found.spearman is found.pearson is found.spearman_interval is None
    assert said in found.note


def test_resamples_that_are_constant_are_passed_over() -> None:
    actual = np.array([0.0, 0, 0, 0, 1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = agreement(np.array([0.0, 0, 0, 1, 1]), truth_of(actual))
    assert np.isfinite(found.spearman_interval).all()


def test_scores_of_members_add_up() -> None:
    groups = (np.array([0, 1]), np.array([2]), np.array([1, 3]))
    truth = Truth("groups", groups, np.array([[3.0, 4.0, 7.0]]), metadata={"dataset_size": 4})
    np.testing.assert_array_equal(truth.predicted(np.array([1.0, 2.0, 4.0, 5.0])), [3, 4, 7])
    np.testing.assert_array_equal(truth.predicted(np.array([1.0, np.nan, np.nan, 5.0])), [1, np.nan, 5])
    with pytest.raises(EvaluationError, match="5 scores"):
        truth.predicted(np.zeros(5))


@pytest.mark.parametrize("kept_weight", [1.0, 2.0])
def test_an_additive_loss_is_predicted_without_error(kept_weight: float) -> None:
    generator = np.random.default_rng(3)
    effects = generator.normal(size=(5, 40))
    kept = tuple(np.sort(generator.choice(40, 20, replace=False)) for _ in range(30))
    weights = np.zeros((30, 40))
    for row, subset in zip(weights, kept, strict=True):
        row[subset] = kept_weight
    losses = effects @ (weights - 1).T  # of each of 5 queries, beside that with all samples
    truth = Truth("lds", kept, losses.mean(0)[None], kept_weight=kept_weight, per_query=losses, queries=np.arange(5))
    np.testing.assert_allclose(truth.predicted(effects.mean(0)), truth.influence)
    assert agreement(effects.mean(0), truth).spearman == pytest.approx(1)
    assert agreement(effects, truth).spearman == pytest.approx(1)
    shuffled = agreement(generator.permuted(effects, axis=1), truth)
    assert abs(shuffled.spearman) < 0.5
    with pytest.raises(EvaluationError, match="4 single query samples"):
        agreement(effects[:4], truth)
