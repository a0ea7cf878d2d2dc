"""Rules that choose, against what they promise and against naive forms of themselves."""

from __future__ import annotations

import numpy as np
import pytest

from diffin.actions.select import rules
from diffin.actions.select.shares import chosen, class_weights, quotas, random_rule, swapped
from diffin.errors import DiffinError

SIZE = 90


@pytest.fixture
def generator() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def labels(generator: np.random.Generator) -> np.ndarray:
    return generator.choice(3, SIZE, p=[0.6, 0.3, 0.1]).astype(np.int64)


@pytest.fixture
def features(generator: np.random.Generator) -> np.ndarray:
    return generator.standard_normal((SIZE, 5)).astype(np.float32)


def everything() -> np.ndarray:
    return np.arange(SIZE, dtype=np.int64)


def all_rules(features: np.ndarray, labels: np.ndarray) -> dict[str, rules.Rule]:
    score = features[:, 0].astype(np.float64)
    return {
        "random": random_rule(0),
        "highest": rules.highest(score),
        "stratified": rules.stratified(score, 0.2, 0),
        "moderate": rules.moderate(features, labels),
        "k-center": rules.k_center(features, 0),
        "diverse": rules.diverse(score, features),
    }


RULES = ("random", "highest", "stratified", "moderate", "k-center", "diverse")


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("wanted", [1, 7, 45, SIZE])
@pytest.mark.parametrize("balanced", [True, False])
def test_as_many_are_kept_as_were_wanted_each_once(name, wanted, balanced, features, labels) -> None:
    kept = chosen(all_rules(features, labels)[name], labels if balanced else None, everything(), wanted)
    assert len(np.unique(kept)) == wanted
    assert (np.diff(kept) > 0).all()
    assert kept.min() >= 0
    assert kept.max() < SIZE


@pytest.mark.parametrize("name", RULES)
def test_balanced_keeps_the_proportions_of_the_classes(name, features, labels) -> None:
    kept = chosen(all_rules(features, labels)[name], labels, everything(), 30)
    counts = np.bincount(labels[kept], minlength=3)
    assert (np.abs(counts - 30 * np.bincount(labels) / SIZE) < 1).all()


@pytest.mark.parametrize("name", RULES)
def test_only_usable_samples_are_kept(name, features, labels) -> None:
    usable = everything()[::2]
    assert np.isin(chosen(all_rules(features, labels)[name], labels, usable, 20), usable).all()


@pytest.mark.parametrize("name", RULES)
def test_the_same_seed_keeps_the_same(name, features, labels) -> None:
    first, second = (chosen(all_rules(features, labels)[name], labels, everything(), 20) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_quotas_sum_up_and_never_exceed_a_class() -> None:
    for sizes in ([1, 1, 1], [5, 1, 90], [3, 3, 4]):
        for wanted in range(sum(sizes) + 1):
            found = quotas(np.array(sizes), wanted)
            assert found.sum() == wanted
            assert (found <= sizes).all()


def test_highest_leaves_out_what_has_no_score() -> None:
    score = np.array([np.nan, 1.0, 3.0, 2.0])
    np.testing.assert_array_equal(rules.highest(score)(np.arange(4), 3), [2, 3, 1])


def test_stratified_drops_the_hardest_and_covers_the_rest() -> None:
    difficulty = np.linspace(0, 1, 100)
    kept = rules.stratified(difficulty, cut=0.3, seed=0, strata=10)(np.arange(100), 20)
    assert kept.max() < 70
    np.testing.assert_array_equal(np.bincount(np.sort(kept) // 7), np.full(10, 2))


def test_stratified_hands_on_what_a_small_stratum_cannot_give() -> None:
    difficulty = np.concatenate([np.zeros(95), np.full(5, 1.0)])
    kept = rules.stratified(difficulty, cut=0.0, seed=0, strata=4)(np.arange(100), 40)
    assert (kept >= 95).sum() == 5


def test_moderate_keeps_those_at_the_median_distance() -> None:
    features = np.array([[0.0], [1.0], [2.0], [3.0], [10.0]], dtype=np.float32)
    distance = np.abs(features[:, 0] - features.mean())
    expected = np.argsort(np.abs(distance - np.median(distance)), kind="stable")[:2]
    np.testing.assert_array_equal(rules.moderate(features, None)(np.arange(5), 2), expected)


def test_k_center_is_the_naive_greedy_rule(features) -> None:
    kept = rules.k_center(features, 3)(everything(), 12)
    expected = [int(kept[0])]
    while len(expected) < 12:
        distance = np.linalg.norm(features[:, None].astype(np.float64) - features[expected].astype(np.float64), axis=2)
        expected.append(int(distance.min(axis=1).argmax()))
    np.testing.assert_array_equal(kept, expected)


def test_k_center_survives_samples_that_are_all_alike() -> None:
    kept = rules.k_center(np.ones((6, 2), dtype=np.float32), 0)(np.arange(6), 4)
    assert len(set(kept.tolist())) == 4


def test_diverse_prefers_the_second_best_elsewhere_to_a_copy_of_the_best() -> None:
    features = np.array([[1, 0], [1, 0], [0, 1], [-1, 0]], dtype=np.float32)
    score = np.array([4.0, 3.0, 2.0, 1.0])
    assert rules.diverse(score, features)(np.arange(4), 2).tolist() == [0, 2]
    assert rules.diverse(score, features, strength=0.0)(np.arange(4), 2).tolist() == [0, 1]


def test_swaps_are_the_worst_inside_for_the_best_outside() -> None:
    influence = np.array([5.0, -1.0, 2.0, -3.0, 4.0, -2.0, 1.0, 0.0])
    inside = np.array([0, 1, 2, 6])
    assert swapped(inside, influence, None, np.arange(8), 0.25).tolist() == [1, 2, 3, 6]
    assert swapped(inside, influence, None, np.arange(8), 0.5).tolist() == [1, 3, 5, 6]


def test_no_swap_makes_it_worse() -> None:
    influence = np.array([-5.0, -4.0, 1.0, 2.0])
    assert swapped(np.array([0, 1]), influence, None, np.arange(4), 1.0).tolist() == [0, 1]


def test_swaps_keep_size_classes_and_what_has_no_influence(generator, labels) -> None:
    influence = generator.standard_normal(SIZE)
    inside = chosen(random_rule(0), labels, everything(), 30)
    influence[inside[:3]] = np.nan
    usable = np.setdiff1d(everything(), np.setdiff1d(everything(), inside)[:5])
    after = swapped(inside, influence, labels, usable, 0.5)
    np.testing.assert_array_equal(np.bincount(labels[after]), np.bincount(labels[inside]))
    assert np.isin(inside[:3], after).all()
    assert np.isin(after, usable).all()
    assert np.nansum(influence[after]) < np.nansum(influence[inside])


def test_weights_give_each_class_its_share_in_the_data(labels) -> None:
    subset = np.sort(np.concatenate([np.flatnonzero(labels == kind)[:3] for kind in range(3)]))
    weights = class_weights(subset, labels)
    share = np.array([weights[labels[subset] == kind].sum() for kind in range(3)]) / weights.sum()
    np.testing.assert_allclose(share, np.bincount(labels) / SIZE)
    np.testing.assert_allclose(weights.mean(), 1)
    np.testing.assert_array_equal(class_weights(subset, None), 1)


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.5])
def test_shares_outside_of_zero_to_one_are_refused(fraction) -> None:
    from diffin.actions.select.shares import count

    with pytest.raises(DiffinError, match="fractions="):
        count(fraction, 10)
