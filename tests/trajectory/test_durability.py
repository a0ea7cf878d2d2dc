from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from recorded_loops import SAMPLES, batch_indices, make, record, same, tensors, train
from torch import nn

import diffin.trajectory
from diffin.errors import RecordingError, TrajectoryError
from diffin.trajectory import Recorder, Trajectory


class Trainings:
    """A process that trains on request; see killed_training.py."""

    def __init__(self) -> None:
        here = Path(__file__).parent
        source = Path(diffin.trajectory.__file__).parents[2]
        environment = {**os.environ, "PYTHONPATH": f"{source}{os.pathsep}{here}"}
        command = [sys.executable, str(here / "killed_training.py")]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def run(self, path: Path, seconds: float | None = None, after: Path | None = None) -> int:
        """Train into ``path``, to the end or killed some seconds ``after`` a file exists. Returns the exit status."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{path}\n")
        self.process.stdin.flush()
        child = int(self.process.stdout.readline())
        if seconds is not None:
            while after is not None and not after.exists():
                time.sleep(0.001)
            time.sleep(seconds)
            os.kill(
                child, signal.SIGKILL
            )  # It may have ended, but nobody has waited for it: the number is still its own.
        self.process.stdin.write("wait\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


@pytest.fixture
def trainings() -> Iterator[Trainings]:
    server = Trainings()
    yield server
    server.process.communicate()  # Closes its input, which ends it.


def assert_same_trajectory(a: Trajectory, b: Trajectory, steps: int) -> None:
    assert a.steps is not None
    assert b.steps is not None
    assert np.array_equal(a.steps.learning_rates[:steps], b.steps.learning_rates[:steps])
    assert np.array_equal(a.steps.clip_coefficients[:steps], b.steps.clip_coefficients[:steps])
    for t in range(steps):
        assert np.array_equal(a.steps.indices(t), b.steps.indices(t))
        assert a.steps.constants(t) == b.steps.constants(t)


def test_a_training_killed_at_random_moments_is_readable_and_resumes_to_the_same_bits(
    tmp_path: Path, trainings: Trainings
) -> None:
    assert trainings.run(tmp_path / "first") == 0  # Waits for the imports, which are not to be timed.
    began = time.monotonic()
    assert trainings.run(tmp_path / "whole") == 0
    duration = time.monotonic() - began
    whole = Trajectory.open(tmp_path / "whole")
    assert whole.steps is not None

    generator = random.Random(2)
    killed_after = []
    for attempt in range(8):
        # However slow the machine is now, some are killed after the first state was written.
        after = tmp_path / "killed" / "checkpoints" / "000000000000" if attempt % 2 else None
        if trainings.run(tmp_path / "killed", generator.uniform(0.0, duration / 3), after) == 0:
            break
        if not (tmp_path / "killed" / "trajectory.json").exists():
            continue  # Killed before anything was recorded.
        killed = Trajectory.open(tmp_path / "killed")
        killed_after.append(killed.total_steps)
        assert_same_trajectory(killed, whole, killed.total_steps)
        for checkpoint in killed.checkpoints:
            assert checkpoint.learning_rate == whole.steps.learning_rates[checkpoint.step, 0]
        for stored in killed.stored:
            assert all(bool(tensor.isfinite().all()) for tensor in stored.state.values())
            assert stored.optimizer_state.keys() == whole.checkpoints[0].optimizer_state.keys() or stored.step == 0
    assert killed_after
    assert trainings.run(tmp_path / "killed") == 0

    resumed = Trajectory.open(tmp_path / "killed")
    assert resumed.complete
    assert resumed.total_steps == whole.total_steps
    assert_same_trajectory(resumed, whole, whole.total_steps)
    assert [c.step for c in resumed.checkpoints] == [c.step for c in whole.checkpoints]
    for a, b in zip(resumed.checkpoints, whole.checkpoints, strict=True):
        assert same(a.state, b.state)
    assert resumed.final is not None
    assert whole.final is not None
    assert same(resumed.final.state, whole.final.state)


def test_leftovers_of_a_killed_writer_are_ignored_and_cleared(tmp_path: Path) -> None:
    record(tmp_path, checkpoints=[4, 8])
    (tmp_path / "checkpoints" / "000000000009.part").mkdir()
    (tmp_path / "steps" / "000000000012.parquet.part").write_bytes(b"half")
    (tmp_path / "checkpoints" / "notes").mkdir()
    assert [c.step for c in Trajectory.open(tmp_path).checkpoints] == [4, 8]
    resume(tmp_path, stop=16, checkpoints=[4, 8, 9])
    assert Trajectory.open(tmp_path).total_steps == 16


def test_a_state_without_a_following_step_serves_resuming_only(tmp_path: Path) -> None:
    model, optimizer = make(momentum=0.9)
    recorder = Recorder(tmp_path, model, optimizer, dataset_size=SAMPLES, checkpoints=[2, 5])
    for _ in train(recorder, model, optimizer, 5):
        pass  # And then the process is gone: nothing is closed.
    killed = Trajectory.open(tmp_path)
    assert [c.step for c in killed.checkpoints] == [2]
    assert [c.step for c in killed.stored] == [0, 2, 5]
    assert killed.final is None
    assert "not closed" in killed.replay_obstacles()[0]
    assert resume(tmp_path, stop=6, checkpoints=[2, 5])[0] == 5
    assert [c.step for c in Trajectory.open(tmp_path).checkpoints] == [2, 5]


def test_the_rates_of_the_step_after_a_checkpoint_are_on_disk_at_once(tmp_path: Path) -> None:
    model, optimizer = make()
    recorder = Recorder(tmp_path, model, optimizer, dataset_size=SAMPLES, checkpoints=[3])
    known = [Trajectory.open(tmp_path).total_steps for _ in train(recorder, model, optimizer, 8)]
    assert known == [0, 1, 1, 3, 4, 4, 4, 4]


def test_an_exception_in_the_loop_keeps_every_step_and_claims_no_end(tmp_path: Path) -> None:
    model, optimizer = make()

    def loop() -> None:
        with Recorder(tmp_path, model, optimizer, dataset_size=SAMPLES, checkpoints=[3]) as recorder:
            for step in train(recorder, model, optimizer, 8):
                if step == 7:
                    raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop()
    trajectory = Trajectory.open(tmp_path)
    assert (trajectory.total_steps, trajectory.complete) == (7, False)


def resume(path: Path, stop: int, **settings: object) -> tuple[int, nn.Module]:
    model, optimizer = make(momentum=0.9)
    torch.manual_seed(99)
    with Recorder(path, model, optimizer, dataset_size=SAMPLES, resume="latest", **settings) as recorder:  # type: ignore[arg-type]
        taken = recorder.steps_taken
        for _ in train(recorder, model, optimizer, stop):
            pass
    return taken, model


def test_a_finished_training_can_be_continued(tmp_path: Path) -> None:
    whole, _ = record(tmp_path / "whole", stop=20, checkpoints=[3, 15])
    record(tmp_path / "parts", stop=12, checkpoints=[3, 15])
    taken, continued = resume(tmp_path / "parts", stop=20, checkpoints=[3, 15])
    assert taken == 12
    assert same(tensors(continued), tensors(whole))
    trajectory = Trajectory.open(tmp_path / "parts")
    assert_same_trajectory(trajectory, Trajectory.open(tmp_path / "whole"), 20)
    assert [c.step for c in trajectory.checkpoints] == [3, 15]


def test_resuming_where_nothing_is_starts_afresh(tmp_path: Path) -> None:
    assert resume(tmp_path / "new", stop=3)[0] == 0
    assert Trajectory.open(tmp_path / "new").complete


def test_a_caller_who_restored_a_state_says_so_and_drops_what_came_after(tmp_path: Path) -> None:
    record(tmp_path, stop=12, checkpoints=[3, 8])
    model, optimizer = make(momentum=0.9)
    with Recorder(tmp_path, model, optimizer, dataset_size=SAMPLES, checkpoints=[3, 8], resume=5) as recorder:
        assert recorder.steps_taken == 5
        assert Trajectory.open(tmp_path).total_steps == 5
        assert [c.step for c in Trajectory.open(tmp_path).stored] == [0, 3, 5]
        for _ in train(recorder, model, optimizer, 10):
            pass
    trajectory = Trajectory.open(tmp_path)
    assert trajectory.total_steps == 10
    assert [c.step for c in trajectory.checkpoints] == [3, 8]
    assert all(np.array_equal(trajectory.steps.indices(t), batch_indices(t)) for t in range(10))  # type: ignore[union-attr]


def test_a_scheduler_that_was_not_advanced_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    record(tmp_path, stop=12, checkpoints=[3])
    shutil.rmtree(tmp_path / "checkpoints" / "000000000012")
    model, optimizer = make(momentum=0.9, lr=0.05)
    with Recorder(tmp_path, model, optimizer, dataset_size=SAMPLES, checkpoints=[3], resume="latest") as recorder:
        assert recorder.steps_taken == 3
        for _ in train(recorder, model, optimizer, 5):
            pass
    assert "was the scheduler advanced" in caplog.text


def test_resuming_something_else_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    record(tmp_path, stop=6, checkpoints=[3])
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    model, optimizer = make(momentum=0.9)
    other = nn.Linear(5, 3)
    wide = make()[0]
    wide.turned = nn.Parameter(torch.zeros(3, 7))
    split = torch.optim.SGD([{"params": [p]} for p in model.parameters()], lr=0.1)
    cases = [
        (model, optimizer, {"dataset_size": 41}, "dataset_size is 41 here and 40 there"),
        (model, torch.optim.Adam(model.parameters()), {}, "the optimizer is Adam here and SGD there"),
        (other, torch.optim.SGD(other.parameters(), lr=0.1), {}, "records another model"),
        (wide, torch.optim.SGD(wide.parameters(), lr=0.1), {}, "the shape of 'turned'"),
        (model, split, {}, "in other groups"),
        (model, optimizer, {"resume": 7}, "has only 6 steps"),
    ]
    for module, stepper, settings, sentence in cases:
        with pytest.raises(RecordingError, match=sentence):
            Recorder(tmp_path, module, stepper, **{"dataset_size": SAMPLES, "resume": "latest", **settings})  # type: ignore[arg-type]
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(RecordingError, match="no stored state to resume from"):
        Recorder(tmp_path, model, optimizer, dataset_size=SAMPLES, resume="latest")
    with pytest.raises(TrajectoryError, match="does not exist"):
        Recorder(tmp_path / "none", model, optimizer, dataset_size=SAMPLES, resume=3)


def test_a_full_disk_stops_the_training_with_a_sentence_and_loses_nothing(tmp_path: Path) -> None:
    model = nn.Linear(100, 300)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = Recorder(tmp_path, model, optimizer, dataset_size=SAMPLES, checkpoints=[3, 6])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def loop() -> None:
        with recorder:
            for step in range(10):
                if step == 5:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))  # The state is larger, the log is not.
                optimizer.zero_grad()
                model(torch.randn(4, 100)).square().mean().backward()
                optimizer.step()
                recorder.step([step])

    try:
        with pytest.raises(RecordingError, match=r"could not write to .*up to step 6 is on disk"):
            loop()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    trajectory = Trajectory.open(tmp_path)
    assert (trajectory.total_steps, trajectory.complete) == (6, False)
    assert [c.step for c in trajectory.checkpoints] == [3]
    assert trajectory.checkpoints[0].parameters["weight"].shape == (300, 100)
    assert not list((tmp_path / "checkpoints").glob("*.part"))


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    model, optimizer = make()
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(RecordingError, match=r"could not write|not empty"):
            Recorder(path, model, optimizer, dataset_size=SAMPLES)


def test_random_numbers_go_on_where_they_were(tmp_path: Path) -> None:
    model, optimizer = make()
    recorder = Recorder(tmp_path, model, optimizer, dataset_size=SAMPLES)
    expected = (torch.rand(3), np.random.rand(3), np.random.randn(), random.gauss(0, 1), random.random())
    recorder.close()
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    Recorder(tmp_path, *make(), dataset_size=SAMPLES, resume="latest")
    # Both generators keep half a pair of normals, which must come back as well.
    again = (torch.rand(3), np.random.rand(3), np.random.randn(), random.gauss(0, 1), random.random())
    assert torch.equal(expected[0], again[0])
    assert np.array_equal(expected[1], again[1])
    assert expected[2:] == again[2:]


def test_recording_draws_no_random_numbers_and_warns_of_nothing(tmp_path: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    model, optimizer = make()
    torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Recorder(tmp_path, model, optimizer, dataset_size=SAMPLES).close()
    assert torch.equal(torch.rand(2), expected)
