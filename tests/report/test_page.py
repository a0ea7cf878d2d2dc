"""What the page says, read from its HTML."""

from __future__ import annotations

import json
import logging
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from handmade import make_scores, random_scores
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from diffin.errors import DatasetError, MissingDependencyError, ProblemError, ScoringError, TrajectoryError
from diffin.problem import Problem
from diffin.report import write_report
from diffin.sources import Indexed
from diffin.tasks import Classification


def _page(path: Path) -> str:
    """The page without its scripts and style: what the data made of it."""
    html = path.read_text(encoding="utf-8")
    return re.sub(r"<(script|style)>.*?</\1>", "", html, flags=re.DOTALL)


def _payload(path: Path) -> Any:
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(encoding="utf-8"))
    assert match is not None
    return json.loads(match[1])


def test_the_page_is_one_file_without_addresses(digits: Problem, tmp_path: Path) -> None:
    path = write_report(random_scores(60), tmp_path / "page.html", problem=digits)
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]
    html = _page(path)
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", html)
    assert "default-src 'none'" in html


def test_a_folder_gets_a_report_in_it(tmp_path: Path) -> None:
    assert write_report(random_scores(5), tmp_path) == tmp_path / "report.html"
    assert write_report(random_scores(5), tmp_path / "new" / "page.html").is_file()


def test_the_headline_says_what_was_scored_and_the_sign(digits: Problem, tmp_path: Path) -> None:
    html = " ".join(_page(write_report(random_scores(60), tmp_path, problem=digits, title="My run")).split())
    assert "<h1>My run</h1>" in html
    assert "60 samples did to the mean loss of 77 query samples, estimated by Diff-In from 4 checkpoints" in html
    assert "Positive influence harms" in html
    assert "Negative helps" in html


def test_harmful_cards_harm_and_helpful_cards_help(tmp_path: Path) -> None:
    cards = _payload(write_report(make_scores([[1.0, 1], [-1, -2], [3, -1], [0, 0]]), tmp_path))["cards"]
    assert [card["index"] for card in cards["harmful"]] == [0, 2]
    assert [card["index"] for card in cards["helpful"]] == [1]


def test_the_course_of_a_card_adds_up_to_its_influence(tmp_path: Path) -> None:
    scores = random_scores(30)
    payload = _payload(write_report(scores, tmp_path))
    assert payload["unit"] == "\u00d710\u207b\u2076"
    for card in payload["cards"]["harmful"] + payload["cards"]["helpful"]:
        np.testing.assert_allclose(sum(card["terms"]), scores.influence[card["index"]] * 1e6, rtol=1e-4)
        np.testing.assert_allclose(card["error"], scores.standard_error[card["index"]] * 1e6, rtol=1e-4)


def test_ranks_count_from_the_most_harmful(tmp_path: Path) -> None:
    cards = _payload(write_report(random_scores(30), tmp_path, top=1))["cards"]
    facts = {side: dict(map(tuple, cards[side][0]["facts"])) for side in cards}
    assert facts["harmful"]["rank"] == "1 of 30, most harmful first"
    assert facts["helpful"]["rank"] == "30 of 30, most harmful first"


def test_failed_samples_are_listed_and_not_ranked(tmp_path: Path) -> None:
    terms = random_scores(30).terms.copy()
    terms[[4, 9], 1] = np.nan
    path = write_report(make_scores(terms), tmp_path)
    html = _page(path)
    assert "2 samples had a loss or a term that is not finite" in html
    assert "#4" in html
    assert "#9" in html
    assert "of 28, most harmful first" in path.read_text(encoding="utf-8")


def test_a_page_of_nothing_but_failures_says_so(tmp_path: Path) -> None:
    html = _page(write_report(make_scores(np.full((5, 3), np.nan)), tmp_path, flagged={1}))
    assert "No sample harms" in html
    assert "5 samples had a loss" in html


def test_predictions_are_those_of_the_given_state_and_the_model_is_not_changed(digits: Problem, tmp_path: Path) -> None:
    model = digits.task.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    state = {"1.weight": torch.zeros(10, 64), "1.bias": 50 * torch.nn.functional.one_hot(torch.tensor(7), 10).float()}
    html = _page(write_report(random_scores(60), tmp_path, problem=digits, state=state))
    assert html.count("7 (100%)") >= 48
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_without_a_state_there_are_labels_and_no_predictions(digits: Problem, tmp_path: Path) -> None:
    html = _page(write_report(random_scores(60), tmp_path, problem=digits))
    assert "<dt>label</dt>" in html
    assert "<dt>model</dt>" not in html


def test_labels_belong_to_their_sample(digits: Problem, tmp_path: Path) -> None:
    cards = _payload(write_report(random_scores(60), tmp_path, problem=digits))["cards"]
    for card in cards["harmful"] + cards["helpful"]:
        assert dict(map(tuple, card["facts"]))["label"] == str(card["index"] % 10)


def test_buffers_of_the_given_state_are_not_written_to(tmp_path: Path) -> None:
    class Counting(nn.Module):
        """Writes to a buffer whenever it is called, in whatever mode."""

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 2)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            self.calls.add_(1)
            return self.linear(inputs)

    model = Counting()
    data = TensorDataset(torch.rand(9, 4), torch.zeros(9, dtype=torch.long))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    write_report(random_scores(9), tmp_path, problem=Problem(Classification(model), data, data), state=state)
    assert float(state["calls"]) == float(model.calls) == 0


def test_tied_weights_are_substituted_once(tmp_path: Path) -> None:
    first, second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    second.weight = first.weight
    model = nn.Sequential(first, second)
    data = TensorDataset(torch.rand(9, 4), torch.zeros(9, dtype=torch.long))
    state = {name: torch.eye(4) for name in ("0.weight", "1.weight")}
    html = _page(
        write_report(random_scores(9), tmp_path, problem=Problem(Classification(model), data, data), state=state)
    )
    assert "<dt>model</dt>" in html


def test_a_state_of_another_model_is_refused(digits: Problem, tmp_path: Path) -> None:
    with pytest.raises(TrajectoryError, match=r"1\.weight"):
        write_report(random_scores(60), tmp_path, problem=digits, state={"1.weight": torch.zeros(3, 3)})
    assert not list(tmp_path.iterdir())


def test_a_task_that_cannot_say_costs_the_words_and_not_the_page(
    digits: Problem, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Mute(Classification):
        def labels(self, batch: Any) -> list[str]:
            raise KeyError("names")

    problem = replace(digits, task=Mute(digits.task.model))
    with caplog.at_level(logging.WARNING):
        html = _page(write_report(random_scores(60), tmp_path, problem=problem))
    assert "Labels and predictions could not be taken: KeyError" in html
    assert "KeyError" in caplog.text
    assert html.count("<img") == 48


def test_scores_of_another_data_set_are_refused(digits: Problem, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="the problem that was scored"):
        write_report(random_scores(200), tmp_path, problem=digits)


class Stream(IterableDataset[Any]):
    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __iter__(self) -> Any:
        return iter(self.items)


@pytest.mark.parametrize("wrap", ["loader", "indexed", "loader of indexed", "stream"])
def test_whatever_can_be_scored_can_be_shown(digits: Problem, tmp_path: Path, wrap: str) -> None:
    train: Any = digits.train
    if "indexed" in wrap:
        train = Indexed(train)
    if "loader" in wrap:
        train = DataLoader(train, batch_size=7, shuffle=True)
    if wrap == "stream":
        train = Stream(list(digits.train))
    plain = write_report(random_scores(60), tmp_path / "plain.html", problem=digits)
    wrapped = write_report(random_scores(60), tmp_path / "wrapped.html", problem=replace(digits, train=train))
    assert _page(wrapped) == _page(plain)


def test_a_stream_that_is_too_short_is_refused(digits: Problem, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="the problem that was scored"):
        write_report(random_scores(60), tmp_path, problem=replace(digits, train=Stream(list(digits.train)[:20])))


def test_show_decides_what_is_shown_and_its_failure_names_the_sample(digits: Problem, tmp_path: Path) -> None:
    html = _page(write_report(random_scores(60), tmp_path, problem=replace(digits, show=lambda item: {"mean": 0.5})))
    assert "<dt>mean</dt><dd>0.5</dd>" in html
    with pytest.raises(ProblemError, match=r"show=\.\.\.\) failed on sample \d+: ZeroDivisionError"):
        write_report(random_scores(60), tmp_path, problem=replace(digits, show=lambda item: 1 / 0))


def test_flagged_samples_have_a_badge_and_both_rankings_are_compared(tmp_path: Path) -> None:
    terms = np.linspace(-1, 1, 100)[:, None] * np.ones((1, 3))
    losses = np.linspace(2, 1, 100)  # the other way round: loss finds none of them early
    flagged = set(range(90, 100))
    html = _page(write_report(make_scores(terms, losses), tmp_path, flagged=flagged, flagged_as="flipped"))
    assert html.count('<span class="badge">flipped</span>') == 10
    text = " ".join(html.split())
    assert '<th scope="row">by influence</th><td>100%</td><td>100%</td><td>100%</td>' in text
    assert '<th scope="row">by mean loss</th><td>0%</td><td>0%</td><td>0%</td>' in text


def test_without_flagged_samples_there_is_no_search(tmp_path: Path) -> None:
    assert "known bad samples" not in _page(write_report(random_scores(60), tmp_path))


def test_one_checkpoint_has_no_standard_error(tmp_path: Path) -> None:
    html = _page(write_report(random_scores(60, checkpoints=1), tmp_path))
    assert "\u00b1" not in html
    assert "Is the ranking stable?" not in html


def test_how_it_was_computed_is_told(tmp_path: Path) -> None:
    extra = {"versions": {"torch": "2.6"}, "seed": 3, "data": {"train": {"digest": "ab"}}, "git revision": None}
    text = " ".join(_page(write_report(random_scores(60), tmp_path, extra=extra)).split())
    assert "Diff-In (Eq. 9 of Tan et al., 2026); batch size 512, seed 0" in text
    assert "<dt>Derivatives</dt><dd>forward, measured relative error 1.2%</dd>" in text
    assert "<dt>versions</dt><dd>torch 2.6</dd>" in text
    assert "<dt>data.train</dt><dd>digest ab</dd>" in text
    assert "<dt>git revision</dt><dd>none</dd>" in text
    assert "<dt>Measured at steps</dt><dd>10, 20, 30, 40</dd>" in text


def test_half_a_character_in_a_text_does_not_stop_the_page(digits: Problem, tmp_path: Path) -> None:
    write_report(random_scores(60), tmp_path, problem=replace(digits, show=lambda item: "half \ud83d of it"))


def test_equal_arguments_write_equal_bytes(digits: Problem, tmp_path: Path) -> None:
    one, other = (write_report(random_scores(60), tmp_path / name, problem=digits) for name in ("a.html", "b.html"))
    assert one.read_bytes() == other.read_bytes()


def test_no_samples_to_show_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ScoringError, match="top=0"):
        write_report(random_scores(5), tmp_path, top=0)


@pytest.mark.parametrize("package", ["jinja2", "plotly"])
def test_a_missing_package_is_named_with_its_extra(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [_Without(package), *sys.meta_path])
    with pytest.raises(MissingDependencyError, match=rf'needs {package}.*pip install "diffin\[report\]"'):
        write_report(random_scores(5), tmp_path)


class _Without:
    """An import system in which a package is not installed."""

    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] == self.package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_scores_along_a_training_and_of_several_say_so(tmp_path: Path) -> None:
    scores = random_scores(40)
    assert "from 4 checkpoints of one training run" in _words(write_report(scores, tmp_path / "draws.html"))
    along = _words(write_report(random_scores(40, terms="parts"), tmp_path / "parts.html"))
    assert "along the whole of one training run" in along
    assert "These scores come from one training whole" in along
    assert "Two halves of the checkpoints" not in along
    several = _words(write_report(random_scores(40, terms="runs"), tmp_path / "runs.html"))
    assert "from 4 training runs" in several
    assert "The standard error over trainings" in several


def _words(path: Path) -> str:
    return " ".join(_page(path).split())
