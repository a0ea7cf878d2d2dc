"""A selection that is killed goes on, and comes to the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from killed_selection import KINDS
from pools import SIZE, Fit, pool, task

import diffin
from diffin.actions.select import Iterated, Selection, select
from diffin.errors import ScoringError

SCRIPT = Path(__file__).with_name("killed_selection.py")


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[dict[str, int]]]]:
    folder = tmp_path_factory.mktemp("killed")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), "4", "0"],
        capture_output=True, text=True, timeout=600, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_selection_comes_to_the_same(kind, killed) -> None:
    folder, _ = killed
    whole, resumed = (Selection.open(folder / kind / how) for how in ("whole", "killed"))
    for a, b in zip(whole.kept, resumed.kept, strict=True):
        np.testing.assert_array_equal(a.indices, b.indices)
    assert whole.details == resumed.details
    assert whole.cost.trainings == resumed.cost.trainings


def test_no_round_is_lost(killed) -> None:
    _, histories = killed
    rounds = [_rounds(state) for state in histories["iterated"]]
    assert any(rounds), "the kills came too early to say anything"
    for before, after in pairwise(rounds):
        assert all(after.get(share, 0) >= done for share, done in before.items())


def _rounds(state: dict[str, int]) -> dict[str, int]:
    """The newest round of each share."""
    found: dict[str, int] = {}
    for name in state:
        share, number = Path(name).parent.name, int(Path(name).stem.rpartition("-")[2])
        found[share] = max(found.get(share, 0), number)
    return found


def test_an_interrupted_round_is_done_again_and_those_before_are_not(tmp_path: Path) -> None:
    train, _, _ = pool()

    class Interrupted(Fit):
        def __call__(self, indices, folder, seed) -> None:
            if self.calls == 2:
                folder.mkdir()
                (folder / "half").write_text("a training that was cut off")
                raise KeyboardInterrupt
            super().__call__(indices, folder, seed)

    settings = Iterated(rounds=3)
    asked = {"fractions": 0.2, "settings": settings, "progress": False}
    with pytest.raises(KeyboardInterrupt):
        select(task(), train, fit=Interrupted(train, 8), output=tmp_path / "a", **asked)
    fit = Fit(train, 8)
    resumed = select(task(), train, fit=fit, output=tmp_path / "a", **asked)
    assert fit.calls == 1
    assert resumed.cost.trainings == 3
    at_once = select(task(), train, fit=Fit(train, 8), **asked)
    np.testing.assert_array_equal(resumed.kept[0].indices, at_once.kept[0].indices)
    assert resumed.details["held_out_loss"] == at_once.details["held_out_loss"]
    assert sorted(path.name for path in (tmp_path / "a" / "rounds" / "0.2").iterdir()) == ["round-003.npz"]


def test_more_shares_go_on_from_what_is_there(tmp_path: Path) -> None:
    train, _, _ = pool()
    fit = Fit(train, 8)
    asked = {"settings": Iterated(rounds=2), "fit": fit, "output": tmp_path, "progress": False}
    select(task(), train, fractions=0.2, **asked)
    both = select(task(), train, fractions=[0.2, 0.4], **asked)
    assert fit.calls == 4
    assert both.cost.trainings == 4
    assert [len(kept.indices) for kept in both.kept] == [round(0.2 * SIZE), round(0.4 * SIZE)]


def test_a_selection_by_another_training_is_not_taken_for_it(tmp_path: Path) -> None:
    train, _, _ = pool()
    for seed in range(2):
        Fit(train)(np.arange(SIZE), tmp_path / f"run-{seed}", seed)
    first, second = (diffin.Trajectory.open(tmp_path / f"run-{seed}") for seed in range(2))
    asked = {"fractions": 0.2, "output": tmp_path / "kept", "progress": False}
    kept = select(task(), train, method="el2n", trajectory=first, **asked)
    again = select(task(), train, method="el2n", trajectory=first, **asked)
    np.testing.assert_array_equal(kept.kept[0].indices, again.kept[0].indices)
    with pytest.raises(ScoringError, match="trajectory is another"):
        select(task(), train, method="el2n", trajectory=second, **asked)


def test_what_is_no_folder_is_named(tmp_path: Path) -> None:
    train, _, _ = pool()
    (tmp_path / "file").touch()
    with pytest.raises(ScoringError, match="could not write the selection"):
        select(task(), train, fractions=0.2, method="random", output=tmp_path / "file", progress=False)


def test_a_damaged_question_is_named(tmp_path: Path) -> None:
    train, _, _ = pool()
    asked = {"fractions": 0.2, "method": "random", "output": tmp_path, "progress": False}
    select(task(), train, **asked)
    (tmp_path / "question.json").write_text("{")
    with pytest.raises(ScoringError, match=r"question.json is damaged"):
        select(task(), train, **asked)
    assert len(select(task(), train, **asked, resume=False).kept) == 1


def test_a_damaged_round_is_named(tmp_path: Path) -> None:
    train, _, _ = pool()
    asked = {"settings": Iterated(rounds=2), "fit": Fit(train, 8), "output": tmp_path, "progress": False}
    select(task(), train, fractions=0.2, **asked)
    (tmp_path / "rounds" / "0.2" / "round-002.npz").write_bytes(b"PK nothing")
    with pytest.raises(ScoringError, match=r"round-002.npz is damaged"):
        select(task(), train, fractions=[0.2, 0.4], **asked)
