"""Reading what comes into sight: kept while there is room, by one thread, what is waited for first."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from diffin.errors import UnreadableError
from diffin.explore.samples import WAVE_POINTS, Album, wave, words_of
from diffin.explore.worker import Worker


class Counted(Dataset[Any]):
    """Pictures, and how often each was read."""

    def __init__(self) -> None:
        self.reads: list[int] = []

    def __len__(self) -> int:
        return 100

    def __getitem__(self, row: int) -> Any:
        self.reads.append(row)
        if row == 13:
            raise UnreadableError("torn")
        return torch.full((1, 8, 8), row / 100), row


def test_what_is_kept_is_not_read_again() -> None:
    data = Counted()
    album = Album(data, None)
    first = album.see([4, 2])
    assert album.see([2, 4, 5]) == {**first, **album.kept([5])}
    assert sorted(data.reads) == [2, 4, 5]
    assert first[4].to_json()["picture"].startswith("data:image/png;base64,")


def test_room_is_limited_and_the_oldest_goes_first() -> None:
    data = Counted()
    size = Album(data, None).see([0])[0].size
    album = Album(data, None, room=int(5.5 * size))
    for row in range(20, 30):
        album.see([row])
        album.see([20])
    assert list(album.kept(range(100))) == [20, 26, 27, 28, 29]


def test_a_sample_that_cannot_be_read_or_shown_says_so() -> None:
    assert Album(Counted(), None).see([12, 13])[13].to_json() == {"kind": "trouble", "text": "cannot be read"}

    def show(item: Any) -> Any:
        return {2: item[0]}[item[1]]

    found = Album(Counted(), show).see([2, 3])
    assert found[2].to_json()["kind"] == "picture"
    assert found[3].to_json() == {"kind": "trouble", "text": "cannot be shown: KeyError: 3"}


def test_a_data_set_that_fails_says_so_too() -> None:
    found = Album([1, 2], None).see([0, 5])
    assert "no sample 5" in found[5].to_json()["text"]


@pytest.mark.parametrize(
    "item",
    [
        torch.sin(torch.arange(8000.0)),
        (torch.sin(torch.arange(8000.0)).reshape(1, -1), 3),
        {"audio": {"array": np.sin(np.arange(8000.0)), "sampling_rate": 8000}},
    ],
    ids=["row", "pair", "mapping"],
)
def test_a_sound_is_outlined(item: Any) -> None:
    ends = np.array(wave(item)).reshape(WAVE_POINTS, 2)
    values = np.sin(np.arange(8000.0))
    pieces = np.array_split(values, WAVE_POINTS)
    expected = np.array([(piece.min(), piece.max()) for piece in pieces]) / np.abs(values).max()
    np.testing.assert_allclose(ends, expected, atol=1e-3)


@pytest.mark.parametrize(
    "item", [torch.zeros(20), torch.zeros(3, 64, 64), "text", {"audio": None}, torch.zeros(5000).long(), None]
)
def test_what_is_no_sound_is_not(item: Any) -> None:
    assert wave(item) == ()


def test_words_are_those_of_texts_and_mappings() -> None:
    assert words_of(("a text", 1), None) == "a text"
    assert words_of({"caption": "a cat", "n": 1, "alt": "sits"}, None) == "a cat sits"
    assert words_of({"x": 1}, lambda item: "shown") == "shown"
    assert words_of((torch.zeros(3), 1), None) == ""


def test_jobs_go_before_tasks_and_tasks_go_on_between() -> None:
    done: list[str] = []
    begun, go = threading.Event(), threading.Event()

    def steps() -> Iterator[None]:
        for number in range(3):
            begun.set()
            go.wait(5)
            done.append(f"step {number}")
            yield

    worker = Worker()
    worker.go_through(steps())
    begun.wait(5)
    jobs = [worker.submit(lambda k=k: done.append(f"job {k}")) for k in range(2)]  # type: ignore[misc]
    cancelled = worker.submit(lambda: done.append("never"))
    cancelled.cancel()
    go.set()
    for job in jobs:
        job.result(5)
    for _ in range(200):
        if len(done) == 5:
            break
        time.sleep(0.01)
    worker.close()
    assert done == ["step 0", "job 0", "job 1", "step 1", "step 2"]


def test_a_job_that_fails_tells_whoever_waits_and_the_next_is_done() -> None:
    worker = Worker()
    with pytest.raises(ZeroDivisionError):
        worker.submit(lambda: 1 / 0).result(5)
    assert worker.submit(lambda: 7).result(5) == 7
    worker.close()


def test_a_task_that_fails_is_given_up_and_the_next_goes_on() -> None:
    went_on = threading.Event()

    def broken() -> Iterator[None]:
        yield
        raise OSError("gone")

    def other() -> Iterator[None]:
        went_on.set()
        yield

    worker = Worker()
    worker.go_through(broken())
    worker.go_through(other())
    assert went_on.wait(5)
    worker.close()


def test_closing_cancels_what_has_not_begun() -> None:
    worker, begun, go = Worker(), threading.Event(), threading.Event()
    worker.submit(lambda: (begun.set(), go.wait(5)))
    begun.wait(5)
    late = worker.submit(lambda: 1)
    closing = threading.Thread(target=worker.close)
    closing.start()
    time.sleep(0.05)
    go.set()
    closing.join(5)
    with pytest.raises(CancelledError):
        late.result(1)
