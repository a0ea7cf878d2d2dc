from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recorded_loops import BATCH, SAMPLES, Net, backward, batch_indices, make, record, same, tensors, train
from torch import nn

from diffin.errors import RecordingError, TrajectoryError
from diffin.trajectory import Recorder, Trajectory


@pytest.mark.parametrize(
    ("kind", "constants"),
    [
        (torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
        (torch.optim.Adam, {"betas": (0.8, 0.99), "amsgrad": True}),
        (torch.optim.AdamW, {"weight_decay": 0.1, "eps": 1e-6}),
    ],
)
@pytest.mark.parametrize("scheduler_first", [False, True])
def test_what_is_read_back_is_what_happened(
    tmp_path: Path, kind: type[torch.optim.Optimizer], constants: dict[str, Any], scheduler_first: bool
) -> None:
    model, optimizer = make(kind, **constants)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12)
    states, buffers, rates = [], [], []
    with Recorder(tmp_path / "run", model, optimizer, dataset_size=SAMPLES, total_steps=12, checkpoints=3) as recorder:
        for _ in train(recorder, model, optimizer, 12, scheduler, scheduler_first):
            states.append(tensors(model))
            buffers.append(copy.deepcopy(optimizer.state_dict()["state"]))
            rates.append(optimizer.param_groups[0]["lr"])
    trajectory = Trajectory.open(tmp_path / "run")

    assert (trajectory.dataset_size, trajectory.total_steps, trajectory.complete) == (SAMPLES, 12, True)
    assert trajectory.steps is not None
    assert trajectory.steps.learning_rates[:, 0].tolist() == rates
    assert all(np.array_equal(trajectory.steps.indices(t), batch_indices(t)) for t in range(12))
    assert [checkpoint.step for checkpoint in trajectory.checkpoints] == [2, 6, 10]
    names = [name for name, _ in model.named_parameters()]
    for checkpoint in trajectory.checkpoints:
        assert same(checkpoint.state, states[checkpoint.step])
        assert set(checkpoint.parameters) == set(names)
        assert set(checkpoint.buffers) == {name for name, _ in model.named_buffers()}
        assert checkpoint.learning_rate == rates[checkpoint.step]
        stored = checkpoint.optimizer_state
        for position, name in enumerate(names):
            expected = buffers[checkpoint.step][position]
            assert stored[name].keys() == expected.keys()
            assert all(torch.equal(stored[name][key], expected[key]) for key in expected)
    assert trajectory.initial is not None
    assert same(trajectory.initial.state, states[0])
    assert trajectory.final is not None
    assert same(trajectory.final.state, tensors(model))
    assert trajectory.optimizer is not None
    assert trajectory.optimizer.kind == kind.__name__
    assert trajectory.optimizer.supported
    group = trajectory.optimizer.groups[0]
    assert group.names == tuple(names)
    for key, value in constants.items():
        assert group.constants[key] == (list(value) if isinstance(value, tuple) else value)
    assert trajectory.replay_obstacles() == []
    assert trajectory.size_bytes == sum(f.stat().st_size for f in (tmp_path / "run").rglob("*") if f.is_file())


def test_each_group_keeps_its_own_rate(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Net()
    frozen = nn.Linear(2, 2)
    both = nn.ModuleDict({"net": model, "frozen": frozen})
    groups = [
        {"params": model.first.parameters(), "lr": 0.5},
        {"params": [*model.norm.parameters(), model.tied.weight, model.turned], "lr": 0.25, "momentum": 0.5},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    with Recorder(tmp_path, both, optimizer, dataset_size=SAMPLES, checkpoints=[1]) as recorder:
        for _ in train(recorder, model, optimizer, 3):
            pass
    trajectory = Trajectory.open(tmp_path)
    (checkpoint,) = trajectory.checkpoints
    rates = checkpoint.learning_rates(["net.first.weight", "net.turned", "frozen.bias"])
    assert rates == {"net.first.weight": 0.5, "net.turned": 0.25, "frozen.bias": 0.0}
    with pytest.raises(TrajectoryError, match=r"different learning rates.*learning_rates\(names\)"):
        _ = checkpoint.learning_rate
    with pytest.raises(TrajectoryError, match=r"'nothing' is not a parameter"):
        checkpoint.learning_rates(["nothing"])
    assert trajectory.optimizer is not None
    assert trajectory.optimizer.summary == "SGD (momentum=0.5)"
    assert trajectory.final is not None
    with pytest.raises(TrajectoryError, match="no step followed"):
        _ = trajectory.final.learning_rate


def test_a_momentum_that_a_schedule_moves_is_recorded_step_by_step(tmp_path: Path) -> None:
    model, optimizer = make(momentum=0.9)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.5, total_steps=20)
    with Recorder(tmp_path, model, optimizer, dataset_size=SAMPLES, checkpoints=2) as recorder:
        steps = train(recorder, model, optimizer, 10, scheduler)
        used = [(optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]) for _ in steps]
    log = Trajectory.open(tmp_path).steps
    assert log is not None
    assert [(log.learning_rates[t, 0], log.constants(t)[0]["momentum"]) for t in range(10)] == used
    assert log.constants_vary
    with pytest.raises(TrajectoryError, match="step=10 was not recorded"):
        log.constants(10)


def test_the_names_are_those_of_the_module_inside_a_wrapper(tmp_path: Path) -> None:
    model, optimizer = make()
    with Recorder(tmp_path, torch.compile(nn.DataParallel(model)), optimizer, dataset_size=SAMPLES) as recorder:
        for _ in train(recorder, model, optimizer, 2):
            pass
    assert set(Trajectory.open(tmp_path).parameter_shapes) == {name for name, _ in model.named_parameters()}


def test_micro_batches_belong_to_the_step_that_uses_their_gradients(tmp_path: Path) -> None:
    model, optimizer = make()
    with Recorder(tmp_path, model, optimizer, dataset_size=SAMPLES, checkpoints=1, total_steps=2) as recorder:
        for last in (batch_indices(2), None):
            backward(model, batch_indices(0))
            recorder.accumulate(batch_indices(0).tolist())
            backward(model, batch_indices(1))
            recorder.accumulate(batch_indices(1).numpy())
            if last is not None:
                backward(model, last)
            optimizer.step()
            recorder.step(last)
    log = Trajectory.open(tmp_path).steps
    assert log is not None
    assert np.array_equal(log.indices(0), torch.cat([batch_indices(i) for i in range(3)]))
    assert np.array_equal(log.indices(1), torch.cat([batch_indices(i) for i in range(2)]))
    assert (log.micro_batches(0), log.micro_batches(1)) == ((BATCH,) * 3, (BATCH,) * 2)


def test_a_step_that_the_optimizer_did_not_take_is_refused(tmp_path: Path) -> None:
    model, optimizer = make()
    recorder = Recorder(tmp_path, model, optimizer, dataset_size=SAMPLES)
    backward(model, batch_indices(0))
    with pytest.raises(RecordingError, match=r"took no step.*recorder.accumulate.*grad_scaler=scaler"):
        recorder.step(batch_indices(0))


def test_two_steps_without_a_record_between_them_are_refused_before_the_second(tmp_path: Path) -> None:
    model, optimizer = make()
    Recorder(tmp_path, model, optimizer, dataset_size=SAMPLES)
    backward(model, batch_indices(0))
    optimizer.step()
    before = tensors(model)
    with pytest.raises(RecordingError, match=r"second time without recorder\.step"):
        optimizer.step()
    assert same(before, tensors(model))


def test_an_unrecorded_last_step_leaves_a_readable_but_incomplete_trajectory(tmp_path: Path) -> None:
    model, optimizer = make()
    recorder = Recorder(tmp_path, model, optimizer, dataset_size=SAMPLES)
    for _ in train(recorder, model, optimizer, 3):
        pass
    backward(model, batch_indices(3))
    optimizer.step()
    with pytest.raises(RecordingError, match=r"after the last recorder\.step"):
        recorder.close()
    recorder.close()
    trajectory = Trajectory.open(tmp_path)
    assert (trajectory.total_steps, trajectory.complete, trajectory.final) == (3, False, None)


def test_a_step_that_mixed_precision_skips_is_recorded_as_skipped(tmp_path: Path) -> None:
    model, optimizer = make()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=100)
    inputs = torch.randn(SAMPLES, 5)
    with Recorder(tmp_path, model, optimizer, dataset_size=SAMPLES, grad_scaler=scaler, checkpoints=1) as recorder:
        for step in range(4):
            optimizer.zero_grad()
            loss = model(inputs[batch_indices(step)]).square().mean()
            scaler.scale(loss * (float("inf") if step == 2 else 1.0)).backward()
            scaler.unscale_(optimizer)
            recorder.clip_grad_norm_(1.0)
            scaler.step(optimizer)
            scaler.update()
            recorder.step(batch_indices(step))
        optimizer.zero_grad()
        scaler.scale(model(inputs[:2]).square().mean()).backward()
        with pytest.raises(RecordingError, match=r"all gradients are finite.*recorder.accumulate"):
            recorder.step([0, 1])
    trajectory = Trajectory.open(tmp_path)
    log = trajectory.steps
    assert log is not None
    assert log.skipped.tolist() == [False, False, True, False]
    assert np.isfinite(log.clip_coefficients).all()
    assert len(trajectory.replay_obstacles()) == 1
    assert "mixed precision" in trajectory.replay_obstacles()[0]


def test_a_step_that_a_fused_optimizer_skips_inside_is_recorded_as_skipped(tmp_path: Path) -> None:
    model, optimizer = make(torch.optim.AdamW, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    inputs = torch.randn(SAMPLES, 5)
    with Recorder(tmp_path, model, optimizer, dataset_size=SAMPLES, grad_scaler=scaler, checkpoints=1) as recorder:
        for step in range(3):
            optimizer.zero_grad()
            loss = model(inputs[batch_indices(step)]).square().mean()
            scaler.scale(loss * (float("inf") if step == 1 else 1.0)).backward()
            scaler.step(optimizer)
            scaler.update()
            recorder.step(batch_indices(step))
    log = Trajectory.open(tmp_path).steps
    assert log is not None
    assert log.skipped.tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("indices", "sentence"),
    [
        (torch.tensor([0, SAMPLES]), f"step 0 has the sample index {SAMPLES}, outside 0 to {SAMPLES - 1}"),
        ([-1, 3], "sample index -1"),
        (torch.tensor([0.0, 1.0]), "not torch.float32"),
        (torch.tensor([True, False]), "not torch.bool"),
        (np.array([0.5]), "not float64"),
        ([], "not an empty sequence"),
        (torch.tensor([], dtype=torch.int64), "not an empty tensor"),
        (["a"], "not <U1"),
    ],
)
def test_what_is_no_position_in_the_training_set_is_refused(tmp_path: Path, indices: Any, sentence: str) -> None:
    model, optimizer = make()
    recorder = Recorder(tmp_path, model, optimizer, dataset_size=SAMPLES)
    backward(model, batch_indices(0))
    optimizer.step()
    with pytest.raises(RecordingError, match=sentence):
        recorder.step(indices)
    recorder.step(batch_indices(0))  # Nothing was written down for the refused one.
    recorder.close()
    assert Trajectory.open(tmp_path).total_steps == 1


def test_an_index_out_of_range_late_in_training_keeps_the_steps_before_it(tmp_path: Path) -> None:
    model, optimizer = make()
    recorder = Recorder(tmp_path, model, optimizer, dataset_size=SAMPLES, checkpoints=[3])
    for _ in train(recorder, model, optimizer, 35):
        pass
    backward(model, batch_indices(35))
    optimizer.step()
    recorder.step([SAMPLES])
    with pytest.raises(RecordingError, match=f"step 35 has the sample index {SAMPLES}"):
        recorder.close()
    trajectory = Trajectory.open(tmp_path)
    assert (trajectory.total_steps, trajectory.complete) == (35, False)


@pytest.mark.parametrize(
    "indices", [torch.tensor([1, 1, 2]), np.array([1, 1, 2], dtype=np.uint8), (1, 1, 2), iter([1, 1, 2])]
)
def test_indices_may_come_as_anything_that_holds_whole_numbers(tmp_path: Path, indices: Any) -> None:
    model, optimizer = make()
    with Recorder(tmp_path, model, optimizer, dataset_size=SAMPLES) as recorder:
        backward(model, batch_indices(0))
        optimizer.step()
        recorder.step(indices)
        if isinstance(indices, torch.Tensor):
            indices.fill_(0)  # Loops reuse their tensors.
    log = Trajectory.open(tmp_path).steps
    assert log is not None
    assert log.indices(0).tolist() == [1, 1, 2]  # type: ignore[union-attr]


def test_steps_without_indices_are_an_obstacle_to_replay_only(tmp_path: Path) -> None:
    model, optimizer = make()
    with Recorder(tmp_path, model, optimizer, dataset_size=SAMPLES, total_steps=4, checkpoints=2) as recorder:
        for step in range(4):
            backward(model, batch_indices(step))
            optimizer.step()
            recorder.step(batch_indices(step) if step == 1 else None)
    trajectory = Trajectory.open(tmp_path)
    assert len(trajectory.checkpoints) == 2
    assert trajectory.replay_obstacles() == [
        "The samples of 3 of 4 steps are unknown, step 0 first: pass indices to recorder.step."
    ]


def test_an_optimizer_that_is_not_known_is_recorded_and_said_to_be_so(tmp_path: Path) -> None:
    class Mine(torch.optim.SGD):
        pass

    model, optimizer = make(Mine, momentum=0.5)
    with Recorder(tmp_path, model, optimizer, dataset_size=SAMPLES, total_steps=2, checkpoints=1) as recorder:
        for _ in train(recorder, model, optimizer, 2):
            pass
    trajectory = Trajectory.open(tmp_path)
    assert trajectory.optimizer is not None
    assert (trajectory.optimizer.kind, trajectory.optimizer.supported) == ("Mine", False)
    assert trajectory.optimizer.groups[0].constants["momentum"] == 0.5
    assert "The optimizer Mine is not one whose steps are known" in trajectory.replay_obstacles()[0]


def test_an_optimizer_of_something_else_is_refused(tmp_path: Path) -> None:
    model, _ = make()
    stranger = torch.optim.SGD([*model.parameters(), nn.Parameter(torch.zeros(7))], lr=0.1)
    with pytest.raises(RecordingError, match=r"1 tensors that are not parameters of the model.*\(7,\)"):
        Recorder(tmp_path, model, stranger, dataset_size=SAMPLES)
    with pytest.raises(RecordingError, match="optimizer is a Net"):
        Recorder(tmp_path, model, model, dataset_size=SAMPLES)  # type: ignore[arg-type]


def test_a_group_added_during_the_recording_is_refused(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 3))
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    recorder = Recorder(tmp_path, model, optimizer, dataset_size=SAMPLES)
    for _ in train(recorder, model, optimizer, 1):
        pass
    optimizer.add_param_group({"params": model[1].parameters()})
    backward(model, batch_indices(1))
    with pytest.raises(RecordingError, match="parameter groups of the optimizer changed"):
        optimizer.step()


def test_parameters_loaded_after_the_recorder_was_made_are_refused(tmp_path: Path) -> None:
    model, optimizer = make()
    Recorder(tmp_path, model, optimizer, dataset_size=SAMPLES)
    torch.manual_seed(5)
    model.load_state_dict(Net().state_dict())
    backward(model, batch_indices(0))
    with pytest.raises(RecordingError, match="create the Recorder after initialising or loading"):
        optimizer.step()


@pytest.mark.parametrize(
    ("make_model", "sentence"),
    [
        (lambda: nn.LazyLinear(3), "run one batch"),
        (lambda: nn.Linear(2, 2, device="meta"), "on a real device"),
    ],
)
def test_a_model_that_cannot_be_written_down_is_refused(tmp_path: Path, make_model: Any, sentence: str) -> None:
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(RecordingError, match=sentence):
        Recorder(tmp_path, model, optimizer, dataset_size=SAMPLES)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"dataset_size": 0}, "dataset_size=0"),
        ({"dataset_size": 2.5}, "dataset_size=2.5"),
        ({"resume": "newest"}, "resume='newest'"),
        ({"resume": -1}, "resume=-1"),
        ({"resume": True}, "resume=True"),
        ({"total_steps": 0}, "total_steps=0"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(tmp_path: Path, settings: dict[str, Any], sentence: str) -> None:
    model, optimizer = make()
    with pytest.raises(RecordingError, match=sentence):
        Recorder(tmp_path / "run", model, optimizer, **{"dataset_size": SAMPLES, **settings})
    assert not (tmp_path / "run").exists()


def test_a_path_that_holds_something_is_never_overwritten(tmp_path: Path) -> None:
    record(tmp_path)
    model, optimizer = make(momentum=0.9)
    with pytest.raises(RecordingError, match=r"not empty.*resume='latest'.*resume=<steps>"):
        Recorder(tmp_path, model, optimizer, dataset_size=SAMPLES)
    assert Trajectory.open(tmp_path).complete


def test_a_closed_recorder_records_nothing_more_and_lets_go_of_the_optimizer(tmp_path: Path) -> None:
    model, optimizer = make()
    with Recorder(tmp_path, model, optimizer, dataset_size=SAMPLES) as recorder:
        for _ in train(recorder, model, optimizer, 2):
            pass
    backward(model, batch_indices(2))
    optimizer.step()
    optimizer.step()
    for call in (recorder.step, lambda: recorder.accumulate([0]), lambda: recorder.clip_grad_norm_(1.0)):
        with pytest.raises(RecordingError, match="closed"):
            call()
    assert Trajectory.open(tmp_path).total_steps == 2


def test_nothing_trained_is_a_trajectory_without_steps(tmp_path: Path) -> None:
    model, optimizer = make()
    Recorder(tmp_path, model, optimizer, dataset_size=SAMPLES).close()
    trajectory = Trajectory.open(tmp_path)
    assert (trajectory.total_steps, trajectory.checkpoints) == (0, ())
    assert trajectory.initial is not None
    assert trajectory.final is not None
