"""An interrupted scoring goes on, with its own work and nobody else's."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch.utils.data import Subset, TensorDataset

import diffin.scoring
from diffin.derivatives import Difference, Forward
from diffin.errors import DatasetError, ScoringError
from diffin.scoring import Scores, score_probes
from diffin.sources import open_source

QUIET = {"derivatives": Forward(), "progress": False, "batch_size": 4, "part_rows": 10}


def _contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def _killed_scoring(output: Path, probes: Path, kind: str, kills: int, seed: int) -> list[dict[str, int]]:
    script = Path(__file__).with_name("killed_scoring.py")
    source = Path(diffin.scoring.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, str(script), str(output), str(probes), kind, str(kills), str(seed)],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(not hasattr(sys, "getdlopenflags"), reason="needs fork and SIGKILL")
@pytest.mark.parametrize("kind", ["map", "stream"])
def test_a_scoring_killed_at_random_moments_resumes_to_the_same_bytes(probes, tmp_path, kind):
    assert len(_killed_scoring(tmp_path / "whole", probes.path, kind, 0, seed=0)) == 1
    history = _killed_scoring(tmp_path / "killed", probes.path, kind, 6, seed=1)
    assert _contents(tmp_path / "killed") == _contents(tmp_path / "whole")
    counts = [len(parts) for parts in history]
    assert len(set(counts)) > 3, f"the kills came too early or too late to test anything: {counts}"
    for before, after in pairwise(history):
        assert before.items() <= after.items(), "a finished part was written again"


class Failing(torch.utils.data.Dataset):
    """A dataset whose sample number ``at`` cannot be read."""

    def __init__(self, dataset: TensorDataset, at: int) -> None:
        self.dataset, self.at = dataset, at

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int):
        if index == self.at:
            raise OSError("the picture is damaged")
        return self.dataset[index]


def test_a_sample_that_cannot_be_read_is_named_and_finished_parts_are_kept(task, probes, dataset, tmp_path):
    data = Failing(dataset, -1)
    whole = score_probes(task, probes, dataset, output=tmp_path / "whole", **QUIET)
    score_probes(task, probes, data, output=tmp_path / "out", **QUIET)
    for number in (2, 3):
        (tmp_path / "out" / f"part-{number:05d}.parquet").unlink()
    data.at = 25
    with pytest.raises(OSError, match="damaged") as caught:
        score_probes(task, probes, data, output=tmp_path / "out", **QUIET)
    assert any("sample 25" in note for note in caught.value.__notes__)
    data.at = -1
    score_probes(task, probes, data, output=tmp_path / "out", **QUIET)
    assert _contents(whole.path) == _contents(tmp_path / "out")


@pytest.mark.parametrize("missing", [[0], [1], [3], [0, 2], [0, 1, 2, 3]], ids=str)
def test_missing_parts_are_written_anew_and_the_others_left_alone(task, probes, dataset, tmp_path, missing):
    output = tmp_path / "out"
    score_probes(task, probes, dataset, output=output, **QUIET)
    before = _contents(output)
    for number in missing:
        (output / f"part-{number:05d}.parquet").unlink()
    times = {file.name: file.stat().st_mtime_ns for file in output.glob("*.parquet")}
    score_probes(task, probes, dataset, output=output, **QUIET)
    assert _contents(output) == before
    assert all((output / name).stat().st_mtime_ns == time for name, time in times.items())


def test_complete_scores_are_returned_without_measuring_again(task, probes, dataset, tmp_path):
    first = score_probes(task, probes, dataset, output=tmp_path / "out", **QUIET)
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()}
    second = score_probes(task, probes, dataset, output=tmp_path / "out", **QUIET)
    assert second.table.equals(first.table)
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()} == times


def test_auto_settings_of_a_resumed_run_are_those_it_began_with(task, probes, dataset, tmp_path):
    output = tmp_path / "out"
    options = {"progress": False, "part_rows": 10, "output": output}
    score_probes(task, probes, dataset, derivatives="difference", batch_size=4, **options)
    before = _contents(output)
    (output / "part-00001.parquet").unlink()
    score_probes(task, probes, dataset, derivatives="auto", batch_size="auto", **options)
    assert _contents(output) == before


def test_leftovers_of_an_interrupted_write_are_removed(task, probes, dataset, tmp_path):
    score_probes(task, probes, dataset, output=tmp_path / "out", **QUIET)
    (tmp_path / "out" / "part-00003.parquet").unlink()
    (tmp_path / "out" / "part-00003.parquet.part").write_bytes(b"PAR1 half of")
    score_probes(task, probes, dataset, output=tmp_path / "out", **QUIET)
    assert not list((tmp_path / "out").glob("*.part"))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"batch_size": 5}, "batch_size"),
        ({"part_rows": 11}, "part_rows"),
        ({"derivatives": Difference(1e-3)}, "derivatives"),
        ({"derivatives": "ghost"}, "derivatives"),
    ],
    ids=str,
)
def test_other_settings_are_refused_by_name(task, probes, dataset, tmp_path, changed, named):
    score_probes(task, probes, dataset, output=tmp_path / "out", **QUIET)
    before = _contents(tmp_path / "out")
    with pytest.raises(ScoringError, match=f"what differs: {named}.*resume=False"):
        score_probes(task, probes, dataset, output=tmp_path / "out", **(QUIET | changed))
    assert _contents(tmp_path / "out") == before


def test_other_probes_and_other_data_are_refused(task, probes, make_probes, dataset, tmp_path):
    score_probes(task, probes, dataset, output=tmp_path / "out", **QUIET)
    others = make_probes(task, tmp_path / "others", seed=9)
    with pytest.raises(ScoringError, match="the probes"):
        score_probes(task, others, dataset, output=tmp_path / "out", **QUIET)
    with pytest.raises(ScoringError, match=r"length \(37 there, 30 now\)"):
        score_probes(task, probes, Subset(dataset, range(30)), output=tmp_path / "out", **QUIET)
    inputs, targets = dataset.tensors
    with pytest.raises(ScoringError, match="samples of the dataset"):
        score_probes(task, probes, TensorDataset(inputs + 1, targets), output=tmp_path / "out", **QUIET)


def test_resume_false_replaces_the_scores_and_nothing_else(task, probes, make_probes, dataset, tmp_path):
    output = tmp_path / "out"
    score_probes(task, probes, dataset, output=output, **QUIET)
    (output / "notes.txt").write_text("mine")
    others = make_probes(task, tmp_path / "others", seed=9)
    scores = score_probes(task, others, Subset(dataset, range(15)), output=output, resume=False, **QUIET)
    assert len(Scores.open(output)) == len(scores) == 15
    assert sorted(file.name for file in output.iterdir()) == [
        "notes.txt",
        "part-00000.parquet",
        "part-00001.parquet",
        "scores.json",
    ]


def test_resume_false_that_fails_before_it_measures_leaves_the_old_scores(task, probes, dataset, tmp_path):
    score_probes(task, probes, dataset, output=tmp_path / "out", **QUIET)
    before = _contents(tmp_path / "out")
    broken = TensorDataset(torch.full((5, 4), torch.nan, dtype=torch.float64), torch.zeros(5, dtype=torch.long))
    with pytest.raises(ScoringError, match="not finite"):
        score_probes(task, probes, broken, output=tmp_path / "out", resume=False, **QUIET)
    assert _contents(tmp_path / "out") == before


def test_a_truncated_part_is_named_when_a_run_goes_on(task, probes, dataset, tmp_path):
    score_probes(task, probes, dataset, output=tmp_path / "out", **QUIET)
    part = tmp_path / "out" / "part-00002.parquet"
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(ScoringError, match=r"part-00002\.parquet is damaged.*delete it"):
        score_probes(task, probes, dataset, output=tmp_path / "out", **QUIET)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 99}', '{"format": 1}'], ids=repr)
def test_a_damaged_manifest_is_refused(task, probes, dataset, tmp_path, content):
    score_probes(task, probes, dataset, output=tmp_path / "out", **QUIET)
    (tmp_path / "out" / "scores.json").write_text(content)
    with pytest.raises(ScoringError, match=r"damaged|format"):
        score_probes(task, probes, dataset, output=tmp_path / "out", **QUIET)


def test_parts_without_a_manifest_are_refused(task, probes, dataset, tmp_path):
    score_probes(task, probes, dataset, output=tmp_path / "out", **QUIET)
    (tmp_path / "out" / "scores.json").unlink()
    with pytest.raises(ScoringError, match=r"no scores\.json"):
        score_probes(task, probes, dataset, output=tmp_path / "out", **QUIET)


class Shrinking(torch.utils.data.IterableDataset):
    """An iterable that says it holds more, or fewer, samples than it does."""

    def __init__(self, dataset: TensorDataset, said: int) -> None:
        self.dataset, self.said = dataset, said

    def __len__(self) -> int:
        return self.said

    def __iter__(self):
        return (self.dataset[index] for index in range(len(self.dataset)))


@pytest.mark.parametrize("said", [36, 38, 40, 50])
def test_an_iterable_that_does_not_hold_what_it_says_is_refused(task, probes, dataset, said):
    with pytest.raises(DatasetError, match=f"ended after 37 samples and should hold {said}"):
        score_probes(task, probes, Shrinking(dataset, said), **QUIET)


def test_reading_from_the_middle_gives_the_samples_of_reading_from_the_start(dataset):
    for data in (dataset, Shrinking(dataset, 37)):
        source = open_source(data)
        whole = {int(i): x for indices, batch in source.batches(4) for i, x in zip(indices, batch[0], strict=True)}
        middle = [
            (int(i), x) for indices, batch in source.batches(3, 11, 29) for i, x in zip(indices, batch[0], strict=True)
        ]
        assert [index for index, _ in middle] == list(range(11, 29))
        assert all(torch.equal(x, whole[index]) for index, x in middle)
