"""Whatever is done to a file, reading it gives what it holds or an error of this library, soon and in little memory."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz.guarded import attempt
from fuzz.subjects import SUBJECTS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    logging.disable(logging.WARNING)
    made = tmp_path_factory.mktemp("fuzz")
    (made / "work").mkdir()
    yield made
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("name", SUBJECTS)
def test_whole_files_are_read(name: str, folder: Path) -> None:
    (folder / f"sound-{name}").mkdir()
    SUBJECTS[name].make(folder / f"sound-{name}")
    SUBJECTS[name].read(folder / f"sound-{name}")


@pytest.mark.parametrize("name", SUBJECTS)
def test_damaged_files_are_read_or_refused(name: str, folder: Path) -> None:
    subject, whole = SUBJECTS[name], folder / f"whole-{name}"
    whole.mkdir()
    subject.make(whole)

    @settings(max_examples=15, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.integers(0, 2**32))
    def refused(seed: int) -> None:
        outcome = attempt(subject, whole, folder / "work" / "copy", Random(seed))
        assert not outcome.said.startswith("!"), f"seed {seed}: {outcome.how}: {outcome.trace}"

    refused()
