"""The numbers behind the figures, against obvious computations."""

from __future__ import annotations

import numpy as np
import pytest
from handmade import make_scores, random_scores

from diffin.report import figures
from diffin.report.cards import Side, sparkline
from diffin.report.numbers import Unit

NONE = np.array([], dtype=np.int64)


def test_the_histogram_counts_every_sample_in_its_range() -> None:
    values = np.random.default_rng(0).normal(size=5000)
    figure = figures.distribution(values, Unit(0), NONE, "flagged")
    assert figure is not None
    assert sum(sum(trace["y"]) for trace in figure.traces) == 5000
    helps, harms = figure.traces
    assert sum(helps["y"]) == (values < 0).sum()
    assert sum(harms["y"]) == (values > 0).sum()


def test_outliers_are_counted_and_do_not_stretch_the_histogram() -> None:
    values = np.concatenate([np.random.default_rng(0).normal(size=1000), [1e6, 1e7, -1e6]])
    figure = figures.distribution(values, Unit(0), NONE, "flagged")
    assert figure is not None
    assert figure.layout["xaxis"]["range"][1] < 100
    assert "Beyond this range lie 1 to the left and 2 to the right" in figure.caption


@pytest.mark.parametrize("values", [[0.0], [3.0], [-2.0, -2.0], [0.0, 0.0, 1.0]])
def test_a_histogram_of_hardly_anything_can_be_drawn(values: list[float]) -> None:
    figure = figures.distribution(np.array(values), Unit(0), NONE, "flagged")
    assert figure is not None
    low, high = figure.layout["xaxis"]["range"]
    assert low < high


def test_flagged_samples_are_counted_in_the_same_bins() -> None:
    values = np.random.default_rng(0).normal(size=500)
    figure = figures.distribution(values, Unit(0), np.arange(40), "flipped")
    assert figure is not None
    assert sum(figure.traces[-1]["y"]) == 40


def test_courses_end_at_the_influence() -> None:
    scores = random_scores(50)
    harmful, helpful = scores.most_harmful(3), scores.most_helpful(2)
    typical = figures.running_quantiles(scores.terms)
    figure = figures.courses(scores, typical, harmful, helpful, Unit(-6))
    assert figure is not None
    ends = [trace["y"][-1] for trace in figure.traces if trace.get("name", "").startswith("most")]
    np.testing.assert_allclose(ends, scores.influence[[*helpful, *harmful]] * 1e6, rtol=1e-4)
    np.testing.assert_allclose(figure.traces[-1]["y"][-1], np.median(scores.influence) * 1e6, rtol=1e-4)


def test_two_halves_of_noise_share_a_tenth_of_their_top_tenth() -> None:
    terms = np.random.default_rng(0).normal(size=(20_000, 2))
    figure = figures.halves(terms, np.arange(20_000))
    assert figure is not None
    assert "10% stand" in figure.caption
    assert len(figure.traces[0]["x"]) == figures.SCATTER_POINTS


def test_two_equal_halves_share_all_of_it() -> None:
    terms = np.repeat(np.random.default_rng(0).normal(size=(100, 1)), 4, axis=1)
    figure = figures.halves(terms, np.arange(100))
    assert figure is not None
    assert "100% stand" in figure.caption


def test_the_search_curve_agrees_with_counting() -> None:
    generator = np.random.default_rng(0)
    influence, loss = generator.normal(size=1000), generator.normal(size=1000)
    influence[3] = np.nan
    flagged = np.sort(generator.choice(1000, 150, replace=False))
    result = figures.search(influence, loss, flagged, "flipped")
    assert result is not None
    _, table = result
    assert [row.by for row in table] == ["influence", "mean loss"]
    for row, values in zip(table, (influence, loss), strict=True):
        order = sorted(range(1000), key=lambda i: (np.isnan(values[i]), -values[i]))
        expected = [len(set(order[: int(part * 1000)]) & set(flagged.tolist())) / 150 for part in figures.FOUND_AT]
        np.testing.assert_allclose(row.at, expected)


def test_sparkline_bars_touch_zero_and_stay_in_their_box() -> None:
    bars, baseline = sparkline(np.array([2.0, -1.0, 0.0, 1.0]))
    assert baseline == pytest.approx(16)
    assert [bar.harms for bar in bars] == [True, False, False, True]
    assert [bar.height for bar in bars] == pytest.approx([16, 8, 0.4, 8])
    assert all(bar.y + bar.height == pytest.approx(baseline) if bar.harms else bar.y == baseline for bar in bars)


def test_many_checkpoints_are_drawn_as_groups() -> None:
    bars, _ = sparkline(np.ones(1000))
    assert len(bars) == 60
    assert bars[-1].x + bars[-1].width < 100


def test_a_side_holds_only_samples_of_its_sign() -> None:
    scores = make_scores([[1.0], [2.0], [-1.0], [np.nan], [0.0]])
    assert Side.harmful(scores, 9).indices.tolist() == [1, 0]
    assert Side.helpful(scores, 9).indices.tolist() == [2]
    assert Side.harmful(scores, 1).total == 2
