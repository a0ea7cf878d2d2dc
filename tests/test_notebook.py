"""What a notebook shows, and scores as tables of other libraries."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

import diffin
from diffin import notebook
from diffin.actions.clean import Suspects
from diffin.errors import MissingDependencyError, ScoringError
from diffin.probes import CheckpointProbes, Probe, ProbeWriter
from diffin.sources import Keyed
from diffin.tasks import Classification, FunctionTask
from training import record

ROWS = 12


def scored(path, dataset) -> diffin.Scores:
    """Scores of a linear loss with one failed sample: the influence of sample i is i - 6."""
    model = torch.nn.Linear(1, 1, bias=False).double()
    state = {"weight": torch.zeros(1, 1, dtype=torch.float64)}
    writer = ProbeWriter(path, ["weight"], {})
    writer.write(CheckpointProbes(1, state, (Probe(1.0, {"weight": torch.ones(1, 1, dtype=torch.float64)}),)))
    task = FunctionTask(model, lambda model, batch: 5 + model(batch[0])[:, 0])
    return diffin.score_probes(task, writer.finish([1]), dataset, derivatives="forward", progress=False)


@pytest.fixture
def inputs() -> torch.Tensor:
    values = torch.arange(ROWS, dtype=torch.float64)[:, None] - 6
    values[3] = torch.nan
    return values


@pytest.fixture
def scores(inputs, tmp_path) -> diffin.Scores:
    return scored(tmp_path / "probes", TensorDataset(inputs))


def test_pandas_holds_the_columns_in_the_order_of_the_dataset(scores):
    pytest.importorskip("pandas")
    frame = scores.to_pandas()
    assert frame.columns.tolist() == scores.table.column_names
    np.testing.assert_array_equal(frame["influence"].to_numpy(), scores.influence)
    assert frame["influence"].isna().to_numpy().nonzero()[0].tolist() == [3]
    assert frame["index"].tolist() == list(range(ROWS))


def test_polars_holds_the_columns_in_the_order_of_the_dataset(scores):
    pytest.importorskip("polars")
    frame = scores.to_polars()
    assert frame.columns == scores.table.column_names
    assert frame["influence"].null_count() == 1
    np.testing.assert_array_equal(frame["influence"].fill_null(float("nan")).to_numpy(), scores.influence)


@pytest.mark.parametrize("package", ["pandas", "polars"])
def test_a_library_that_is_not_there_is_named(scores, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=f"pip install {package}"):
        getattr(scores, f"to_{package}")()


def test_a_hugging_face_dataset_gets_the_scores_as_columns(scores):
    datasets = pytest.importorskip("datasets")
    before = datasets.Dataset.from_dict({"text": list("abcdefghijkl")})
    after = scores.add_to(before, ["influence", "index"])
    assert before.column_names == ["text"]
    assert after.column_names == ["text", "influence", "index"]
    np.testing.assert_array_equal(np.array(after["influence"], dtype=float), scores.influence)
    # The rows are those of the dataset as it is, whatever it was taken from.
    turned = scores.add_to(before.select(range(ROWS - 1, -1, -1)))
    assert turned[0]["text"] == "l"
    assert turned[0]["influence"] == scores.influence[0]
    with pytest.raises(ScoringError, match="'influence' already"):
        scores.add_to(after)
    with pytest.raises(ScoringError, match="no score 'importance'"):
        scores.add_to(before, ["importance"])
    with pytest.raises(ScoringError, match="11 rows, and 12 samples"):
        scores.add_to(before.select(range(ROWS - 1)))
    with pytest.raises(ScoringError, match="one split"):
        scores.add_to(datasets.DatasetDict(train=before))


def test_a_notebook_shows_both_ends_and_how_influences_are_spread(scores):
    shown = scores._repr_html_()
    cells = re.findall(r"<td[^>]*>(.*?)</td>", shown)
    assert cells[:4] == ["11", f"{scores.influence[11]:+.3e}", "0", f"{scores.influence[0]:+.3e}"]
    assert "3" not in cells[::2]  # the failed one
    picture = _picture(shown)
    assert _drawn(picture, notebook.HELP) == 5
    assert _drawn(picture, notebook.HARM) == 5
    assert _drawn(picture, notebook.PLAIN) == 1


def test_self_influence_is_not_called_harm(tmp_path):
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(ROWS, 2), torch.randint(2, (ROWS,)))
    task = Classification(torch.nn.Linear(2, 2))
    own = diffin.self_influence(
        task, record(tmp_path / "run", task, data), data, estimator=diffin.TracIn(), progress=False
    )
    headings = re.findall(r"<th [^>]*>(.*?)</th>", own._repr_html_())
    assert headings == ["least needed", "influence", "most needed", "influence"]


def test_keys_are_shown_as_text(inputs, tmp_path):
    hostile = "<script>alert(1)</script>&<img src=x onerror=y>\"'"
    keyed = Keyed(TensorDataset(inputs), keys=[hostile, *map(str, range(1, ROWS))])
    shown = scored(tmp_path / "probes", keyed)._repr_html_()
    assert "<script" not in shown
    assert "<img" not in shown
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&amp;" in shown
    _picture(f"<div>{shown}</div>")


def test_the_ends_of_the_picture_say_that_there_is_more():
    texts = [text.text for text in _picture(notebook.around_zero(np.array([-50.0, *[1.0] * 500]))).findall("{*}text")]
    assert texts == ["\u2264 -1.0e+00", "0", "+1.0e+00"]


@pytest.mark.parametrize("values", [[], [np.nan, np.nan]])
def test_without_numbers_there_is_no_picture(values: Sequence[float]):
    assert notebook.around_zero(np.array(values, dtype=float)) == ""
    assert notebook.shares(np.array(values, dtype=float)) == ""


@pytest.mark.parametrize("values", [[0.0], [0.0, 0.0], [1e-300, -1e300], [-3.0], [np.inf, 2.0]])
def test_extreme_numbers_are_drawn_inside_the_picture(values: Sequence[float]):
    picture = _picture(notebook.around_zero(np.array(values)))
    bars = picture.findall("{*}rect")
    assert sum(int(bar.find("{*}title").text) for bar in bars) == np.isfinite(values).sum()
    for bar in bars:
        x, y, width, height = (float(bar.get(name)) for name in ("x", "y", "width", "height"))
        assert 0 <= x <= x + width <= float(picture.get("width"))
        assert 0 <= y <= y + height <= float(picture.get("height"))


def test_label_quality_is_the_probability_that_a_label_is_right():
    suspects = doubted()
    np.testing.assert_array_equal(suspects.label_quality(), 1 - suspects.probability)
    assert np.isnan(suspects.label_quality()[2])
    known = suspects.label_quality()[~np.isnan(suspects.probability)]
    assert ((known >= 0) & (known <= 1)).all()
    assert suspects.index[np.nanargmin(suspects.label_quality())] == suspects.suspects()[0]


def test_a_notebook_shows_the_most_doubtful_labels():
    shown = doubted()._repr_html_()
    cells = re.findall(r"<td[^>]*>(.*?)</td>", shown)
    assert cells == ["40", "1", "100.0%", "0", "80.0%", "10", "0", "75.0%", "2", "60.0%"]
    assert _drawn(_picture(shown), notebook.HARM) == 2


def doubted() -> Suspects:
    return Suspects(
        index=np.array([10, 20, 30, 40]),
        given=np.array([0, 1, 2, 1]),
        suggested=np.array([2, 0, 0, 0]),
        probability=np.array([0.75, 0.0, np.nan, 1.0]),
        suggestion_probability=np.array([0.6, 0.0, np.nan, 0.8]),
        signals={},
        confusion=np.eye(3),
    )


def _picture(shown: str) -> ElementTree.Element:
    """The SVG, read by a parser that forgives nothing."""
    return ElementTree.fromstring(re.search(r"<svg.*?</svg>", shown, re.DOTALL)[0])


def _drawn(picture: ElementTree.Element, colour: str) -> int:
    """The samples in bars of a colour."""
    return sum(int(bar.find("{*}title").text) for bar in picture.findall("{*}rect") if bar.get("fill") == colour)
