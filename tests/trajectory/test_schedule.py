from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded_loops import record

from diffin.errors import RecordingError
from diffin.trajectory import LogSpaced, Trajectory
from diffin.trajectory.schedule import ChosenSteps, Thinning, log_spaced, plan, segment_midpoints


@given(st.integers(1, 50), st.integers(1, 5000))
def test_evenly_spaced_checkpoints_are_the_middles_of_equal_segments(count: int, total: int) -> None:
    steps = segment_midpoints(count, total)
    assert len(steps) == len(set(steps)) == min(count, total)
    if count <= total:
        assert list(steps) == [int(np.floor((j + 0.5) * total / count)) for j in range(count)]
    assert all(0 <= step < total for step in steps)


@given(st.integers(1, 50), st.integers(1, 5000))
def test_log_spaced_checkpoints_are_distinct_and_ever_farther_apart(count: int, total: int) -> None:
    steps = log_spaced(count, total)
    assert len(steps) == min(count, total)
    assert all(0 <= step < total for step in steps)
    gaps = np.diff(steps)
    assert (gaps > 0).all()
    # Rounding moves each end of a gap by at most one half.
    assert (np.diff(gaps) >= -2).all()


@given(st.integers(1, 12), st.integers(1, 3000))
def test_thinning_keeps_between_m_and_2m_evenly_spaced(minimum: int, total: int) -> None:
    schedule = Thinning(minimum)
    kept: list[int] = []
    for step in range(1, total + 1):
        if schedule.includes(step):
            kept = [*(s for s in kept if schedule.keeps(s, step)), step]
        assert len(kept) <= 2 * minimum
    assert len(kept) >= min(minimum, total)
    assert len(set(np.diff(kept))) <= 1
    assert kept[0] == (kept[1] - kept[0] if len(kept) > 1 else kept[0])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"total_steps": 12, "checkpoints": 3}, [2, 6, 10]),
        ({"total_steps": 12, "checkpoints": 50}, list(range(12))),
        ({"total_steps": 12, "checkpoints": LogSpaced(4)}, [0, 1, 4, 11]),
        ({"checkpoints": (7, 3, 3)}, [3, 7]),
        ({"checkpoints": np.array([0, 5])}, [0, 5]),
        ({"checkpoints": 2}, [4, 8]),
        ({"checkpoints": 3}, [2, 4, 6, 8, 10]),
        ({"total_steps": 100, "checkpoints": 10}, [5]),
        ({"checkpoints": [5, 12, 40]}, [5]),
    ],
)
def test_a_training_of_twelve_steps_keeps_the_checkpoints_asked_for(
    tmp_path: Path, settings: dict[str, Any], expected: list[int]
) -> None:
    record(tmp_path, **settings)
    trajectory = Trajectory.open(tmp_path)
    assert [checkpoint.step for checkpoint in trajectory.checkpoints] == expected
    assert trajectory.initial is not None
    assert trajectory.final is not None


@pytest.mark.parametrize(
    ("checkpoints", "total", "sentence"),
    [
        (0, 10, "checkpoints=0"),
        (True, 10, "checkpoints=True"),
        (LogSpaced(3), None, "total_steps"),
        ([], None, "empty"),
        ([-1], None, "-1"),
        ([10], 10, "below 10"),
        (["a"], None, "neither a number"),
        ("abc", None, "neither a number"),
        (2.5, None, "neither a number"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(checkpoints: Any, total: int | None, sentence: str) -> None:
    with pytest.raises(RecordingError, match=sentence):
        plan(checkpoints, total)


def test_log_spacing_needs_a_count() -> None:
    with pytest.raises(RecordingError, match="LogSpaced"):
        LogSpaced(0)


def test_a_schedule_is_told_apart_by_its_json() -> None:
    assert ChosenSteps((1, 2)).to_json() != Thinning(2).to_json()
