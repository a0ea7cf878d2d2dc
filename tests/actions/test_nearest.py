"""The nearest neighbours, against a plain search."""

from __future__ import annotations

import numpy as np
import pytest

from diffin.actions import nearest as module
from diffin.actions.nearest import nearest


@pytest.mark.parametrize("among", [None, np.array([3, 4, 9, 17, 18, 30, 31, 39])])
@pytest.mark.parametrize("block", [7, 1024])
def test_neighbours_are_those_of_a_plain_search(among, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", block)
    features = np.random.default_rng(0).standard_normal((40, 5)).astype(np.float32)
    features[11] = 0
    wide = features.astype(np.float64)
    rows, neighbours, cosines = (np.concatenate(parts) for parts in zip(*nearest(features, 4, among), strict=True))
    np.testing.assert_array_equal(rows, np.arange(40))
    for row in np.delete(rows, 11):
        others = np.setdiff1d(np.arange(40) if among is None else among, [row])
        lengths = np.linalg.norm(wide[others], axis=1) * np.linalg.norm(wide[row])
        cosine = (wide[others] @ wide[row]) / np.where(lengths > 0, lengths, 1)
        order = np.argsort(-cosine)[:4]
        assert set(neighbours[row]) == set(others[order])
        np.testing.assert_allclose(np.sort(cosines[row]), np.sort(cosine[order]), atol=1e-6)
