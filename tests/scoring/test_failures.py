"""What goes wrong: single samples, all samples, memory, the disk."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from diffin.batches import batch_size
from diffin.derivatives import Forward
from diffin.errors import DatasetError, ScoringError, TaskError
from diffin.probes import CheckpointProbes, ProbeWriter
from diffin.scoring import Scores, score_probes
from diffin.tasks import Classification, FunctionTask

QUIET = {"derivatives": Forward(), "progress": False, "batch_size": 4, "part_rows": 10}


def _with_nan(dataset: TensorDataset, rows: list[int], value: float = torch.nan) -> TensorDataset:
    inputs, targets = dataset.tensors
    inputs = inputs.clone()
    inputs[rows] = value
    return TensorDataset(inputs, targets)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("derivatives", ["difference", "forward", "ghost"])
def test_samples_with_a_loss_that_is_not_finite_are_null_listed_and_alone(
    task, probes, dataset, tmp_path, caplog, value, derivatives
):
    options = {"progress": False, "derivatives": derivatives, "batch_size": 4, "part_rows": 10}
    expected = score_probes(task, probes, dataset, **options)
    with caplog.at_level(logging.WARNING):
        scores = score_probes(task, probes, _with_nan(dataset, [3, 11, 36], value), output=tmp_path / "out", **options)
    assert "3 of 37 samples" in caplog.text
    assert "3, 11, 36" in caplog.text
    for opened in (scores, Scores.open(tmp_path / "out")):
        assert opened.failed.tolist() == [3, 11, 36]
        assert opened.metadata["failed"] == [3, 11, 36]
        assert opened.metadata["failed_count"] == 3
        for column in ("influence", "standard_error", "loss", "step_7"):
            assert opened.table.column(column).null_count == 3
        assert np.flatnonzero(np.isnan(opened.influence)).tolist() == [3, 11, 36]
        assert not np.isin([3, 11, 36], opened.most_harmful(100)).any()
        assert not np.isin([3, 11, 36], opened.most_helpful(100)).any()
        assert len(opened.most_harmful(100)) == 34
    good = np.delete(np.arange(37), [3, 11, 36])
    if derivatives != "difference":  # its step was chosen on other samples
        np.testing.assert_allclose(scores.influence[good], expected.influence[good], rtol=1e-6)


def test_failures_found_before_an_interruption_are_listed_after_it(task, probes, dataset, tmp_path):
    data = _with_nan(dataset, [3, 36])
    score_probes(task, probes, data, output=tmp_path / "out", **QUIET)
    (tmp_path / "out" / "part-00001.parquet").unlink()
    assert score_probes(task, probes, data, output=tmp_path / "out", **QUIET).failed.tolist() == [3, 36]


def test_a_finite_loss_is_kept_where_only_the_derivative_fails(task, probes, dataset):
    # The derivative of sqrt at zero is infinite, its value is not.
    def losses(model, batch):
        inputs, targets = batch
        loss = torch.nn.functional.cross_entropy(model(inputs), targets, reduction="none")
        return torch.where(inputs[:, 0] == 0, (loss - loss.detach()).abs().sqrt(), loss)

    inputs, targets = dataset.tensors
    inputs = inputs.clone()
    inputs[5, 0] = 0
    scores = score_probes(FunctionTask(task.model, losses), probes, TensorDataset(inputs, targets), **QUIET)
    assert scores.failed.tolist() == [5]
    assert scores.loss[5] == 0


def test_a_dataset_of_failing_samples_is_refused(task, probes, dataset, tmp_path):
    with pytest.raises(ScoringError, match="not finite"):
        score_probes(task, probes, _with_nan(dataset, list(range(37))), output=tmp_path / "out", **QUIET)
    assert not (tmp_path / "out").exists()


def test_checkpoints_at_which_every_sample_fails_are_refused(task, make_probes, dataset, tmp_path):
    sound = make_probes(task, tmp_path / "sound", steps=(0,)).load(0)
    state = {name: torch.full_like(t, torch.nan) for name, t in sound.state.items()}
    writer = ProbeWriter(tmp_path / "broken", list(state), {})
    writer.write(CheckpointProbes(0, state, sound.probes))
    probes = writer.finish([0])
    with pytest.raises(ScoringError, match="any of the 37 samples"):
        score_probes(task, probes, dataset, output=tmp_path / "out", **QUIET)
    with pytest.raises(ScoringError, match="not complete"):
        Scores.open(tmp_path / "out")


class Empty(IterableDataset):
    def __iter__(self) -> Iterator:
        return iter(())


@pytest.mark.parametrize(
    "dataset", [[], TensorDataset(torch.zeros(0, 4)), Empty()], ids=["list", "tensors", "iterable"]
)
def test_an_empty_dataset_is_refused(task, probes, dataset, tmp_path):
    with pytest.raises(DatasetError, match="the dataset is empty"):
        score_probes(task, probes, dataset, output=tmp_path / "out", **QUIET)
    assert not (tmp_path / "out").exists()


def test_a_reduced_loss_is_refused_before_anything_is_written(task, probes, dataset, tmp_path):
    reduced = FunctionTask(
        task.model, lambda model, batch: torch.nn.functional.cross_entropy(model(batch[0]), batch[1])
    )
    with pytest.raises(TaskError, match="reduction='none'"):
        score_probes(reduced, probes, dataset, output=tmp_path / "out", **QUIET)
    assert not (tmp_path / "out").exists()


def test_a_collate_function_that_drops_samples_is_refused(task, probes, dataset):
    def first_three(samples):
        return torch.utils.data.default_collate(samples[:3])

    with pytest.raises(DatasetError, match="a batch of 3 samples of 37"):
        score_probes(task, probes, dataset, collate=first_three, **QUIET)


class Greedy(Classification):
    """A task that asks the allocator for a petabyte if it is given four to ten samples."""

    def losses(self, batch):
        if 4 <= batch_size(batch) <= 10:
            torch.empty(2**50, dtype=torch.uint8)
        return super().losses(batch)


def test_batches_too_large_for_the_memory_are_halved_until_they_fit_and_that_is_said_once(
    task, probes, dataset, caplog
):
    expected = score_probes(task, probes, dataset, **QUIET)
    with caplog.at_level(logging.WARNING):
        scores = score_probes(Greedy(task.model), probes, dataset, **(QUIET | {"batch_size": 10}))
    np.testing.assert_allclose(scores.terms, expected.terms, rtol=1e-12, atol=1e-14)
    assert [record.message.split(" (")[0] for record in caplog.records] == [
        "too little memory for 10 samples at once",
        "too little memory for 5 samples at once",
    ]


def test_the_first_look_at_the_data_makes_do_with_the_memory_there_is(task, probes, dataset):
    class Modest(Classification):
        def losses(self, batch):
            if batch_size(batch) > 12:
                torch.empty(2**50, dtype=torch.uint8)
            return super().losses(batch)

    expected = score_probes(task, probes, dataset, **QUIET)
    options = QUIET | {"derivatives": "forward"}
    scores = score_probes(Modest(task.model), probes, dataset, **options)
    np.testing.assert_allclose(scores.terms, expected.terms, rtol=1e-12, atol=1e-14)
    assert scores.metadata["self_check"]["samples"] == 9


def test_a_sample_that_alone_is_too_large_for_the_memory_is_an_error_that_says_so(task, probes, dataset):
    class Insatiable(Classification):
        def losses(self, batch):
            if batch_size(batch) in (1, 4):
                torch.empty(2**50, dtype=torch.uint8)
            return super().losses(batch)

    data = TensorDataset(*(tensor[:33] for tensor in dataset.tensors))  # the last batch holds a single one
    with pytest.raises(ScoringError, match="too little memory to measure one sample"):
        score_probes(Insatiable(task.model), probes, data, **(QUIET | {"part_rows": 8, "batch_size": 8}))


resource = pytest.importorskip("resource", reason="needs limits on the size of files")


class FillingDisk(Dataset):
    """A dataset during whose scoring the disk becomes full: files can no longer grow."""

    def __init__(self, dataset: TensorDataset) -> None:
        self.dataset, self.reads = dataset, 0

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int):
        self.reads += index == 25
        if self.reads == 2:  # it is read once before, with the samples that are looked at first
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        return self.dataset[index]


def test_a_full_disk_is_an_error_that_says_so_and_keeps_finished_parts(task, probes, dataset, tmp_path):
    data, output = FillingDisk(dataset), tmp_path / "out"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(
            ScoringError, match=r"part-00002\.parquet cannot be written.*finished parts are kept"
        ) as caught:
            score_probes(task, probes, data, output=output, **QUIET)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.__cause__.errno == errno.EFBIG
    assert sorted(file.name for file in output.iterdir()) == ["part-00000.parquet", "part-00001.parquet", "scores.json"]
    with pytest.raises(ScoringError, match="not complete: 2 parts"):
        Scores.open(output)


def test_after_the_disk_was_full_the_run_goes_on_to_the_same_bytes(task, probes, dataset, tmp_path):
    whole = score_probes(task, probes, dataset, output=tmp_path / "whole", **QUIET)
    output = tmp_path / "out"
    score_probes(task, probes, dataset, output=output, **QUIET)
    (output / "part-00003.parquet").unlink()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(ScoringError, match="finished parts are kept"):
            score_probes(task, probes, dataset, output=output, **QUIET)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    score_probes(task, probes, dataset, output=output, **QUIET)
    for file in whole.path.iterdir():
        assert (output / file.name).read_bytes() == file.read_bytes()


def test_an_output_that_is_a_file_is_refused(task, probes, dataset, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(ScoringError, match="cannot be written"):
        score_probes(task, probes, dataset, output=tmp_path / "out", **QUIET)
