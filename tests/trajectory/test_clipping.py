from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from recorded_loops import SAMPLES, backward, batch_indices, make, same, tensors
from torch import nn

from diffin.errors import RecordingError
from diffin.trajectory import Recorder, Trajectory


def clip_norm(model: nn.Module) -> None:
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.05)


def clip_largest(model: nn.Module) -> None:
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01, norm_type=float("inf"))


def clip_value(model: nn.Module) -> None:
    torch.nn.utils.clip_grad_value_(model.parameters(), 0.01)


def loop(path: Path, between: Callable[[nn.Module], object], steps: int = 12, active_from: int = 0) -> None:
    model, optimizer = make(momentum=0.9)
    with Recorder(path, model, optimizer, dataset_size=SAMPLES, total_steps=steps, checkpoints=4) as recorder:
        for step in range(steps):
            optimizer.zero_grad()
            backward(model, batch_indices(step))
            if step >= active_from:
                between(model)
            optimizer.step()
            recorder.step(batch_indices(step))


def test_clipping_through_the_recorder_is_that_of_pytorch_and_is_recorded(tmp_path: Path) -> None:
    theirs, optimizer = make(momentum=0.9)
    coefficients = []
    for step in range(6):
        optimizer.zero_grad()
        backward(theirs, batch_indices(step))
        norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.9)
        coefficients.append(min(1.0, 0.9 / (float(norm) + 1e-6)))
        optimizer.step()

    ours, optimizer = make(momentum=0.9)
    with Recorder(tmp_path, ours, optimizer, dataset_size=SAMPLES, checkpoints=2) as recorder:
        for step in range(6):
            optimizer.zero_grad()
            backward(ours, batch_indices(step))
            recorder.clip_grad_norm_(0.9)
            optimizer.step()
            recorder.step(batch_indices(step))
        assert same(tensors(ours), tensors(theirs))
        optimizer.step()
        recorder.step([0])
    log = Trajectory.open(tmp_path).steps
    assert log is not None
    assert log.clip_coefficients[:6].tolist() == pytest.approx(coefficients, rel=1e-6)
    assert min(coefficients) < 1
    assert log.clip_coefficient(6) == 1


def test_clipping_twice_in_a_step_is_refused(tmp_path: Path) -> None:
    model, optimizer = make()
    recorder = Recorder(tmp_path, model, optimizer, dataset_size=SAMPLES)
    backward(model, batch_indices(0))
    recorder.clip_grad_norm_(1.0)
    with pytest.raises(RecordingError, match="twice"):
        recorder.clip_grad_norm_(1.0)


@pytest.mark.parametrize("clip", [clip_norm, clip_largest, clip_value])
@pytest.mark.parametrize("active_from", [0, 5])
def test_clipping_behind_the_recorders_back_is_refused(
    tmp_path: Path, clip: Callable[[nn.Module], None], active_from: int
) -> None:
    with pytest.raises(RecordingError, match=r"gradients are clipped.*recorder.clip_grad_norm_\(c\)"):
        loop(tmp_path, clip, active_from=active_from)
    assert not Trajectory.open(tmp_path).complete


def test_clipping_that_starts_late_is_seen_at_the_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="gradients are clipped"):
        loop(tmp_path, clip_norm, steps=60, active_from=12)


def test_clipping_that_never_binds_is_no_clipping(tmp_path: Path) -> None:
    loop(tmp_path, lambda model: torch.nn.utils.clip_grad_norm_(model.parameters(), 1e3))
    assert Trajectory.open(tmp_path).complete


@pytest.mark.parametrize("rescale", [False, True])
def test_gradients_of_constant_norm_that_nobody_clipped_are_left_alone(tmp_path: Path, rescale: bool) -> None:
    """A linear loss: the same gradient each step, or one of the same norm for each normalised sample."""
    inputs = nn.functional.normalize(torch.randn(SAMPLES, 6, generator=torch.Generator().manual_seed(0)), dim=1)
    for name, rows in (("varying", inputs), ("constant", inputs[:1].expand(SAMPLES, 6))):
        model = nn.Linear(6, 1, bias=False)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        if rescale and name == "varying":
            continue  # Written to, and of constant norm while it changes: that is what clipping looks like.
        with Recorder(tmp_path / name, model, optimizer, dataset_size=SAMPLES, checkpoints=2) as recorder:
            for step in range(12):
                optimizer.zero_grad()
                model(rows[step]).sum().backward()
                if rescale:
                    assert model.weight.grad is not None
                    model.weight.grad.div_(2)
                optimizer.step()
                recorder.step([step])
        assert Trajectory.open(tmp_path / name).complete


def test_gradients_that_no_backward_pass_made_can_be_recorded(tmp_path: Path) -> None:
    model, optimizer = make()
    generator = torch.Generator().manual_seed(3)
    with Recorder(tmp_path, model, optimizer, dataset_size=SAMPLES, checkpoints=2) as recorder:
        for step in range(5):
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()
            recorder.step([step])
    assert Trajectory.open(tmp_path).complete
