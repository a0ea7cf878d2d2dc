"""Scores as they are read: saved, opened, ranked, and refused when something is wrong with them."""

from __future__ import annotations

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diffin.derivatives import Forward
from diffin.errors import ScoringError
from diffin.scoring import Scores, score_probes
from diffin.scoring.columns import Rows, standard_error, to_table
from diffin.scoring.sink import missing_runs

QUIET = {"derivatives": Forward(), "progress": False, "batch_size": 4, "part_rows": 10}


@pytest.fixture
def saved(task, probes, dataset, tmp_path) -> Scores:
    return score_probes(task, probes, dataset, output=tmp_path / "saved", **QUIET)


def _part(scores: Scores, number: int):
    return scores.path / f"part-{number:05d}.parquet"


def test_scores_saved_and_opened_are_the_same(task, probes, dataset, tmp_path):
    scores = score_probes(task, probes, dataset, **QUIET)
    opened = Scores.open(scores.save(tmp_path / "there"))
    assert opened.table.equals(scores.table)
    assert opened.metadata == scores.metadata
    for name in ("influence", "standard_error", "loss", "terms", "index", "failed"):
        assert np.array_equal(getattr(opened, name), getattr(scores, name), equal_nan=True)
    assert opened.stability == scores.stability
    assert len(opened) == 37
    assert repr(opened) == f"Scores(37 samples, 3 checkpoints, in '{tmp_path / 'there'}')"
    assert repr(scores) == "Scores(37 samples, 3 checkpoints, in memory)"


def test_columns_are_those_that_are_documented(saved):
    table = saved.table
    assert table.column_names == ["index", "influence", "standard_error", "loss", "step_0", "step_7", "step_20"]
    assert table.schema.types == [pa.int64(), *[pa.float64()] * 6]
    assert saved.metadata["columns"] == table.column_names
    assert pq.read_table(_part(saved, 0)).num_rows == 10


def test_saving_never_replaces_scores_unless_asked(saved, task, make_probes, dataset, tmp_path):
    other = score_probes(task, make_probes(task, tmp_path / "others", seed=9), dataset, **QUIET)
    with pytest.raises(ScoringError, match="overwrite=True"):
        other.save(saved.path)
    assert Scores.open(saved.path).table.equals(saved.table)
    other.save(saved.path, overwrite=True)
    assert Scores.open(saved.path).table.equals(other.table)
    assert saved.save(saved.path) == saved.path


def test_rankings_follow_the_sign_convention(saved):
    order = np.argsort(saved.influence)
    assert saved.most_helpful(5).tolist() == order[:5].tolist()
    assert saved.most_harmful(5).tolist() == order[::-1][:5].tolist()
    assert len(saved.most_harmful(0)) == 0
    assert len(saved.most_helpful(10**6)) == 37
    with pytest.raises(ScoringError, match="k=-1"):
        saved.most_harmful(-1)


def test_equal_influences_rank_in_the_order_of_the_dataset(saved):
    saved.__dict__["influence"] = np.array([0.0, 1.0, 1.0, 0.0])
    assert saved.most_harmful(4).tolist() == [1, 2, 0, 3]
    assert saved.most_helpful(4).tolist() == [0, 3, 1, 2]


def test_a_folder_without_scores_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ScoringError, match="holds no scores"):
            Scores.open(folder)


def test_a_missing_part_is_named(saved):
    _part(saved, 1).unlink()
    with pytest.raises(ScoringError, match=r"part-00001\.parquet is missing"):
        Scores.open(saved.path)


def test_a_truncated_part_is_named(saved):
    _part(saved, 2).write_bytes(_part(saved, 2).read_bytes()[:100])
    with pytest.raises(ScoringError, match=r"part-00002\.parquet is damaged"):
        Scores.open(saved.path)


def test_a_part_in_the_place_of_another_is_named_with_what_is_missing_and_what_is_foreign(saved):
    shutil.copy(_part(saved, 0), _part(saved, 2))
    with pytest.raises(
        ScoringError,
        match=r"part 2 .* lacks 10 samples \(20, 21, 22, 23, 24, \.\.\.\) and holds foreign 10 samples \(0,",
    ):
        Scores.open(saved.path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7, 8, 8], r"lacks 1 samples \(9\) and repeats 1 samples \(8\)"),
        ([0, 1, 2, 3, 4, 5, 6, 7, 8], r"lacks 1 samples \(9\)"),
        ([1, 0, 2, 3, 4, 5, 6, 7, 8, 9], "another order"),
    ],
    ids=["duplicated", "missing", "out of order"],
)
def test_duplicated_missing_and_unordered_indices_are_named(saved, rows, message):
    pq.write_table(pq.read_table(_part(saved, 0)).take(rows), _part(saved, 0))
    with pytest.raises(ScoringError, match=message):
        Scores.open(saved.path)


def test_a_part_that_lacks_a_column_is_refused_where_it_is_read(saved):
    pq.write_table(pq.read_table(_part(saved, 0)).drop_columns(["loss"]), _part(saved, 0))
    with pytest.raises(ScoringError, match=r"part-00000\.parquet"):
        _ = Scores.open(saved.path).loss


def test_the_standard_error_is_that_of_a_sum_of_independent_draws():
    # The deviation of sums of m fresh draws, against the mean of the estimates from m draws each.
    generator = np.random.default_rng(0)
    draws = generator.normal(size=(20_000, 5))
    assert np.sqrt(np.mean(standard_error(draws) ** 2)) == pytest.approx(np.sqrt(5), rel=0.02)


def test_a_sum_of_finite_terms_that_overflows_is_null():
    rows = Rows(np.arange(2), np.ones((2, 2)), np.array([[1e308, 1e308], [1.0, 2.0]]))
    table = to_table(rows, (0, 1))
    assert table.column("influence").to_pylist() == [None, 3.0]
    assert table.column("step_0").to_pylist() == [None, 1.0]
    assert table.column("loss").to_pylist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("finished", "length", "runs"),
    [
        ({}, 25, [(0, 25)]),
        ({0: 10}, 25, [(10, 25)]),
        ({0: 10, 1: 10, 2: 5}, 25, []),
        ({1: 10}, 35, [(0, 10), (20, 35)]),
        ({0: 10, 1: 10}, 20, []),
        ({}, None, [(0, None)]),
        ({0: 10, 2: 10}, None, [(10, 20), (30, None)]),
        ({0: 10, 1: 3}, None, []),
    ],
)
def test_what_is_missing_is_what_no_finished_part_holds(finished, length, runs):
    assert missing_runs(finished, length, 10) == runs


@pytest.mark.parametrize(("finished", "length"), [({0: 9}, 25), ({2: 10}, 25), ({3: 1}, 25), ({0: 3, 1: 10}, None)])
def test_a_part_with_too_many_or_too_few_rows_is_named(finished, length):
    with pytest.raises(ScoringError, match=f"part {next(iter(finished))} .* should hold"):
        missing_runs(finished, length, 10)
