"""Files that an earlier version wrote are read, and hold what they held then."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from formats.reading import READERS

VERSIONS = sorted(path for path in Path(__file__).parent.glob("v*") if path.is_dir())


def expected(version: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((version / "values.json").read_text())
    return found


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("version", VERSIONS, ids=lambda path: path.name)
def test_every_format_is_read_as_it_was_written(version: Path, name: str) -> None:
    # By way of JSON, as the values were: tuples are lists there.
    assert json.loads(json.dumps(READERS[name](version / name))) == expected(version)[name]


def test_there_is_a_fixture_of_every_format() -> None:
    for version in VERSIONS:
        assert {path.name for path in version.iterdir() if path.is_dir()} == set(READERS) == set(expected(version))


def test_fixtures_are_small() -> None:
    assert sum(file.stat().st_size for version in VERSIONS for file in version.rglob("*") if file.is_file()) < 300_000


def test_scores_from_before_keys_say_nothing_of_them() -> None:
    for version in VERSIONS:
        assert "keyed" not in json.loads((version / "scores-before-keys" / "scores.json").read_text())
        assert json.loads((version / "scores" / "scores.json").read_text())["keyed"] is False
