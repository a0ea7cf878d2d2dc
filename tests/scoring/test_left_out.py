"""Samples that cannot be read keep a row, wherever they stand and whether or not the number of samples is known."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from torch.utils.data import IterableDataset, TensorDataset

from diffin.derivatives import Forward
from diffin.scoring import Scores, score_probes
from diffin.sources import Unreadable

OPTIONS: dict[str, Any] = {"derivatives": Forward(), "progress": False, "batch_size": 4, "part_rows": 10}


class Stream(IterableDataset[Any]):
    """The samples one after the other, without a length, some of them unreadable."""

    def __init__(self, dataset: TensorDataset, bad: set[int]) -> None:
        self.dataset, self.bad = dataset, bad

    def __iter__(self) -> Iterator[Any]:
        for index in range(len(self.dataset)):
            yield Unreadable("gone") if index in self.bad else self.dataset[index]


@pytest.mark.parametrize("bad", [{0}, {3, 14, 15}, set(range(10, 20)), {9, 10}, {35}])
def test_a_stream_keeps_the_places_of_what_cannot_be_read(task, probes, dataset, tmp_path, bad):
    whole = score_probes(task, probes, dataset, **OPTIONS)
    score_probes(task, probes, Stream(dataset, bad), output=tmp_path / "out", **OPTIONS)
    scores = Scores.open(tmp_path / "out")
    there = np.array([index not in bad for index in range(len(dataset))])
    assert len(scores) == len(dataset)
    np.testing.assert_allclose(scores.influence[there], whole.influence[there], rtol=1e-12)
    assert scores.failed.tolist() == sorted(bad)
