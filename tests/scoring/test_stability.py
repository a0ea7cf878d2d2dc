"""The figure that says whether there are enough checkpoints, on terms of known reliability."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from diffin.scoring.stability import MAX_ROWS, spearman, stability


def _terms(signal: float, count: int, rows: int = 20_000, seed: int = 0) -> np.ndarray:
    """What is common to all checkpoints has deviation ``signal``, what is not has deviation 1."""
    generator = np.random.default_rng(seed)
    return signal * generator.normal(size=(rows, 1)) + generator.normal(size=(rows, count))


def _truth(signal: float, count: int) -> float:
    """Spearman correlation of two sums of ``count`` terms with the same signal, both normal."""
    pearson = count * signal**2 / (count * signal**2 + 1)
    return 6 / np.pi * np.arcsin(pearson / 2)


@pytest.mark.parametrize("count", [2, 3, 5, 10, 11])
@pytest.mark.parametrize("signal", [0.2, 0.5, 1.0, 3.0])
def test_reliability_and_forecast_are_those_the_terms_were_made_with(signal, count):
    found = stability(_terms(signal, count))
    assert found.checkpoints == count
    assert found.reliability == pytest.approx(_truth(signal, count), abs=0.03)
    assert found.forecast_doubled == pytest.approx(_truth(signal, 2 * count), abs=0.03)


def test_reliability_predicts_the_agreement_with_other_checkpoints():
    terms = _terms(0.4, 12)
    agreement = spearman(terms[:, :6].sum(axis=1), terms[:, 6:].sum(axis=1))
    assert stability(terms[:, :6]).reliability == pytest.approx(agreement, abs=0.03)


def test_noise_is_not_stable_and_signal_is():
    assert stability(_terms(0.0, 10)).reliability < 0.05
    assert stability(np.repeat(np.arange(50.0)[:, None], 4, axis=1)).reliability == pytest.approx(1)
    assert stability(np.zeros((50, 4))).reliability == 0


def test_samples_that_failed_are_left_out():
    terms = _terms(1.0, 6)
    terms[::7, 2] = np.nan
    kept = np.isfinite(terms).all(axis=1)
    assert stability(terms) == stability(terms[kept])


def test_what_cannot_be_told_is_said_so():
    for terms in (_terms(1.0, 1), _terms(1.0, 5, rows=2)):
        found = stability(terms)
        assert found.reliability is None
        assert found.forecast_doubled is None
        assert "cannot be told" in found.sentence()


@pytest.mark.parametrize(("signal", "word"), [(3.0, "enough"), (0.7, "usable"), (0.1, "too few")])
def test_the_sentence_names_the_number_and_the_verdict(signal, word):
    found = stability(_terms(signal, 8))
    assert word in found.sentence()
    assert f"{found.reliability:.2f}" in found.sentence()
    assert "16 checkpoints" in found.sentence()


def test_spearman_agrees_with_scipy_also_on_ties():
    generator = np.random.default_rng(3)
    for top in (4, 10**6):
        a, b = generator.integers(0, top, size=(2, 200)).astype(float)
        assert spearman(a, b + a) == pytest.approx(spearmanr(a, b + a).statistic, abs=1e-12)


def test_more_samples_than_needed_are_sampled(tmp_path):
    from diffin.scoring.columns import Rows, to_table
    from diffin.scoring.manifest import Manifest
    from diffin.scoring.scores import Scores
    from diffin.scoring.sink import MemoryParts

    terms, part_rows = _terms(0.5, 4, rows=MAX_ROWS + 30_000), 50_000
    parts = MemoryParts()
    for number, start in enumerate(range(0, len(terms), part_rows)):
        piece = terms[start : start + part_rows]
        parts.write(
            number, to_table(Rows(np.arange(start, start + len(piece)), np.ones_like(piece), piece), (0, 1, 2, 3))
        )
    described = {"digest": "", "steps": [0, 1, 2, 3], "counts": [1] * 4, "metadata": {}}
    manifest = Manifest(described, {"name": "forward"}, 1, part_rows, len(terms), "", rows=len(terms))
    assert Scores(parts, manifest).stability.reliability == pytest.approx(_truth(0.5, 4), abs=0.02)
