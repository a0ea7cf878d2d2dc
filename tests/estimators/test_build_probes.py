"""Probes: what they refuse, what they keep, and that they are the same wherever they are built."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

import diffin
from cases import make
from diffin.errors import DatasetError, DiffinError, ProbeError, TrajectoryError
from diffin.probes import ProbeSet
from training import record


@pytest.fixture
def setting(tmp_path: Path):
    case = make("mlp")
    train, query = TensorDataset(*case.batch), TensorDataset(*case.query)
    return case.task, record(tmp_path / "run", case.task, train), train, query


def test_saved_probes_give_the_scores_of_fresh_ones(setting, tmp_path: Path) -> None:
    task, trajectory, train, query = setting
    estimator = diffin.DiffIn(batch_size=4)
    diffin.build_probes(
        task, trajectory, train, query=query, estimator=estimator, output=tmp_path / "probes", progress=False
    )
    loaded = diffin.score_probes(task, ProbeSet.open(tmp_path / "probes"), train, derivatives="forward", progress=False)
    fresh = diffin.score(
        task, trajectory, train, query=query, estimator=estimator, derivatives="forward", progress=False
    )
    np.testing.assert_array_equal(loaded.influence, fresh.influence)


def test_probes_do_not_depend_on_the_batch_size_beyond_rounding(setting) -> None:
    task, trajectory, train, query = setting
    sets = [
        diffin.build_probes(
            task, trajectory, train, query=query, estimator=diffin.DiffIn(), batch_size=size, progress=False
        )
        for size in (1, 5)
    ]
    for one, other in zip(*sets, strict=True):
        torch.testing.assert_close(one.probes[0].u, other.probes[0].u)


def test_the_model_is_as_it_was(setting) -> None:
    task, trajectory, train, query = setting
    task.model.train()
    before = {name: t.clone() for name, t in task.model.state_dict().items()}
    diffin.score(task, trajectory, train, query=query, progress=False)
    assert task.model.training
    torch.testing.assert_close(dict(task.model.state_dict()), before, rtol=0, atol=0)
    assert all(p.grad is None for p in task.model.parameters())


def test_samples_that_were_never_trained_on_can_be_scored(setting) -> None:
    task, trajectory, train, query = setting
    probes = diffin.build_probes(task, trajectory, train, query=query, estimator=diffin.DiffIn(), progress=False)
    scores = diffin.score_probes(task, probes, query, progress=False)
    assert np.isfinite(scores.influence).all()


def test_a_missing_query_is_asked_for(setting) -> None:
    task, trajectory, train, _ = setting
    with pytest.raises(DatasetError, match=r"query=None: Unrolled needs"):
        diffin.score(task, trajectory, train, progress=False)


def test_a_model_that_was_not_trained_is_refused(setting) -> None:
    _, trajectory, train, query = setting
    other = diffin.tasks.Classification(torch.nn.Linear(5, 3, dtype=torch.float64))
    with pytest.raises(TrajectoryError, match="build the task with the model that was trained"):
        diffin.score(other, trajectory, train, query=query, progress=False)


def test_a_pattern_that_matches_nothing_is_named(setting) -> None:
    task, trajectory, train, query = setting
    with pytest.raises(DiffinError, match=r"'head\.\*' matches no trainable parameter"):
        diffin.score(task, trajectory, train, query=query, parameters="head.*", progress=False)


def test_probes_of_another_run_are_not_overwritten(setting, tmp_path: Path) -> None:
    task, trajectory, train, query = setting

    def build(estimator: diffin.Estimator) -> ProbeSet:
        return diffin.build_probes(
            task, trajectory, train, query=query, estimator=estimator, output=tmp_path / "probes", progress=False
        )

    first = build(diffin.DiffIn())
    assert build(diffin.DiffIn()).digest == first.digest
    with pytest.raises(ProbeError, match="another run"):
        build(diffin.TracIn())
    assert ProbeSet.open(tmp_path / "probes").digest == first.digest


def test_probes_of_another_query_are_not_taken_for_those_of_this_one(setting, tmp_path: Path) -> None:
    task, trajectory, train, query = setting
    diffin.build_probes(
        task, trajectory, train, query=query, estimator=diffin.TracIn(), output=tmp_path / "p", progress=False
    )
    with pytest.raises(ProbeError, match="another run"):
        diffin.build_probes(
            task, trajectory, train, query=train, estimator=diffin.TracIn(), output=tmp_path / "p", progress=False
        )


@pytest.mark.parametrize("damage", ["truncated", "removed", "index"])
def test_damaged_probes_are_named(setting, tmp_path: Path, damage: str) -> None:
    task, trajectory, train, query = setting
    folder = tmp_path / "probes"
    diffin.build_probes(task, trajectory, train, query=query, estimator=diffin.TracIn(), output=folder, progress=False)
    victim = sorted(folder.glob("probe-*.safetensors"))[1]
    if damage == "truncated":
        victim.write_bytes(victim.read_bytes()[:-7])
    elif damage == "removed":
        victim.unlink()
    else:
        (folder / "probes.json").write_text("{")
    with pytest.raises(ProbeError, match=r"probes\.json" if damage == "index" else victim.name):
        diffin.score_probes(task, ProbeSet.open(folder), train, progress=False)


class Stream(torch.utils.data.IterableDataset):
    """Samples of a dataset, of unknown length."""

    def __init__(self, dataset: TensorDataset) -> None:
        self._dataset = dataset

    def __iter__(self):
        return iter([self._dataset[i] for i in range(len(self._dataset))])


def test_a_stream_of_unknown_length_gives_the_scores_of_the_data_set(setting) -> None:
    task, trajectory, train, query = setting
    settings = {"estimator": diffin.DiffIn(batch_size=4), "derivatives": "forward", "progress": False}
    wanted = diffin.score(task, trajectory, train, query=query, **settings)
    streamed = diffin.score(task, trajectory, Stream(train), query=Stream(query), **settings)
    np.testing.assert_allclose(streamed.influence, wanted.influence, rtol=1e-9)


def test_a_stream_and_a_trajectory_that_do_not_know_n_are_refused(setting, tmp_path: Path) -> None:
    task, trajectory, train, query = setting
    path = tmp_path / "state.pt"
    torch.save(trajectory.checkpoints[0].state, path)
    foreign = diffin.Trajectory.from_checkpoints([path], [5], [0.1])
    with pytest.raises(DatasetError, match="pass dataset_size="):
        diffin.score(task, foreign, Stream(train), query=query, progress=False)
    assert len(diffin.score(task, foreign, train, query=query, progress=False)) == len(train)


def test_the_optimizer_that_an_estimator_was_not_derived_for_is_named(tmp_path: Path, caplog) -> None:
    case = make("mlp")
    train = TensorDataset(*case.batch)
    optimizer = torch.optim.AdamW(case.task.model.parameters(), lr=1e-2)
    trajectory = record(tmp_path / "run", case.task, train, optimizer=optimizer)
    query = TensorDataset(*case.query)
    diffin.score(case.task, trajectory, train, query=query, progress=False)
    assert "derived for plain SGD" not in caplog.text
    diffin.score(case.task, trajectory, train, query=query, estimator=diffin.DiffIn(), progress=False)
    assert "DiffIn is derived for plain SGD; the run used AdamW" in caplog.text


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"batches": 0}, {"batch_size": None, "batches": 2}])
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, int | None]) -> None:
    with pytest.raises(DiffinError, match=r"DiffIn\(batch"):
        diffin.DiffIn(**wrong)
    with pytest.raises(DiffinError, match=r"MoSo\(samples=0\)"):
        diffin.MoSo(samples=0)


@pytest.mark.parametrize("change", ["loss", "rate", "late sample"])
def test_whatever_decides_the_probes_identifies_them(tmp_path: Path, change: str) -> None:
    case = make("mlp")
    train = TensorDataset(*(torch.cat([column] * 20) for column in case.batch))
    trajectory = record(tmp_path / "run", case.task, train)
    paths = [tmp_path / f"{c.step}.pt" for c in trajectory.checkpoints]
    for path, checkpoint in zip(paths, trajectory.checkpoints, strict=True):
        torch.save(checkpoint.state, path)
    steps = [c.step for c in trajectory.checkpoints]

    def build(rate: float, smoothing: float, query: TensorDataset) -> ProbeSet:
        foreign = diffin.Trajectory.from_checkpoints(paths, steps, [rate] * 3, dataset_size=len(train))
        task = diffin.tasks.Classification(case.task.model, label_smoothing=smoothing)
        return diffin.build_probes(
            task, foreign, train, query=query, estimator=diffin.TracIn(), output=tmp_path / "probes", progress=False
        )

    build(0.1, 0.0, train)
    other = train.tensors[1].clone()
    other[100:] = (other[100:] + 1) % 3
    arguments = {
        "loss": (0.1, 0.9, train),
        "rate": (0.001, 0.0, train),
        "late sample": (0.1, 0.0, TensorDataset(train.tensors[0], other)),
    }
    differs = {"loss": "loss", "rate": "learning_rates", "late sample": "data"}[change]
    with pytest.raises(ProbeError, match=f"what differs: .*{differs}.*resume=False"):
        build(*arguments[change])


def test_the_batch_size_does_not_identify_probes(setting, tmp_path: Path) -> None:
    task, trajectory, train, query = setting
    one, other = (
        diffin.build_probes(
            task,
            trajectory,
            train,
            query=query,
            estimator=diffin.TracIn(),
            output=tmp_path / "p",
            batch_size=size,
            progress=False,
        )
        for size in (2, 4)
    )
    assert one.digest == other.digest


@pytest.mark.parametrize("damage", ["truncated", "flipped", "index"])
def test_damaged_probes_are_built_again(setting, tmp_path: Path, damage: str) -> None:
    task, trajectory, train, query = setting

    def build() -> ProbeSet:
        return diffin.build_probes(
            task, trajectory, train, query=query, estimator=diffin.TracIn(), output=tmp_path / "p", progress=False
        )

    first = build()
    victim = (
        tmp_path / "p" / "probes.json" if damage == "index" else sorted((tmp_path / "p").glob("probe-*.safetensors"))[1]
    )
    content = bytearray(victim.read_bytes())
    if damage == "flipped":
        content[-5] ^= 4
        victim.write_bytes(content)
        with pytest.raises(ProbeError, match="it is not what was written"):
            list(first)
    else:
        victim.write_bytes(content[:-7])
    assert len(list(build())) == len(first)


def test_a_disk_that_is_full_is_said_so(setting, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    signal = pytest.importorskip("signal")
    task, trajectory, train, query = setting
    limit, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, limit[1]))
    try:
        with pytest.raises(ProbeError, match="free some space"):
            diffin.build_probes(
                task, trajectory, train, query=query, estimator=diffin.TracIn(), output=tmp_path / "p", progress=False
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_part_of_the_training_set_keeps_the_scale_of_the_run(setting) -> None:
    task, trajectory, train, query = setting
    settings = {"query": query, "estimator": diffin.TracIn(), "derivatives": "forward", "progress": False}
    whole = diffin.score(task, trajectory, train, **settings)
    part = diffin.score(task, trajectory, torch.utils.data.Subset(train, range(3)), **settings)
    np.testing.assert_allclose(part.influence, whole.influence[:3], rtol=1e-9)


@pytest.mark.parametrize("position", [0, 4])
def test_a_broken_sample_costs_its_own_score_only(setting, position: int) -> None:
    task, trajectory, train, query = setting
    inputs = train.tensors[0].index_fill(0, torch.tensor([position]), float("nan"))
    scores = diffin.score(task, trajectory, TensorDataset(inputs, train.tensors[1]), query=query, progress=False)
    assert scores.failed.tolist() == [position]
    assert np.isfinite(np.delete(scores.influence, position)).all()


def test_temporary_probes_go_with_what_refers_to_them(setting) -> None:
    task, trajectory, train, query = setting
    probes = diffin.build_probes(task, trajectory, train, query=query, estimator=diffin.TracIn(), progress=False)
    folder = probes.path
    assert folder.exists()
    del probes
    assert not folder.exists()


def test_a_single_checkpoint_at_the_start_is_refused_where_it_weighs_nothing(setting, tmp_path: Path) -> None:
    task, trajectory, train, query = setting
    torch.save(trajectory.checkpoints[0].state, tmp_path / "state.pt")
    foreign = diffin.Trajectory.from_checkpoints([tmp_path / "state.pt"], [0], [0.1])
    with pytest.raises(TrajectoryError, match="record a later one"):
        diffin.score(task, foreign, train, query=query, estimator=diffin.DiffIn(), progress=False)


def test_arguments_of_a_wrong_kind_are_named(setting) -> None:
    task, trajectory, train, query = setting
    good = {
        "task": task,
        "trajectory": trajectory,
        "train_dataset": train,
        "query": query,
        "estimator": diffin.TracIn(),
    }
    for name, value, advice in (
        ("task", task.model, r"Classification\(model\)"),
        ("trajectory", "runs/a", r"Trajectory\.open"),
        ("estimator", "tracin", r"diffin\.TracIn\(\)"),
        ("estimator", diffin.DiffIn, r"diffin\.Unrolled\(\)"),
    ):
        with pytest.raises(DiffinError, match=advice):
            diffin.score(**{**good, name: value}, progress=False)
