"""The library leaves logging to the program that imports it, and standard output to nobody."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import diffin
from diffin.progress import phase, silenced


def test_importing_installs_no_handler() -> None:
    code = (
        "import logging, diffin, diffin.cli, diffin.report, diffin.evaluation, diffin.sources, diffin.export\n"
        "named = [logging.getLogger(name) for name in logging.root.manager.loggerDict if name.startswith('diffin')]\n"
        "assert named and not logging.root.handlers and not any(one.handlers for one in named), named"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_loggers_are_named_after_their_modules() -> None:
    package = Path(diffin.__file__).parent
    made = {
        (path.relative_to(package).as_posix(), name)
        for path in package.rglob("*.py")
        for name in re.findall(r"^\w+ = logging\.getLogger\((.*)\)", path.read_text(), re.MULTILINE)
    }
    assert len(made) > 20
    assert {name for _, name in made} == {"__name__"}


def test_progress_is_one_line_on_standard_error_where_there_is_no_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    with phase("scoring", 3, show=True) as bar:
        for _ in range(3):
            bar.advance()
    shown = capfd.readouterr()
    assert shown.out == ""
    assert shown.err.count("scoring") == 1
    assert "3/3" in shown.err
    assert "\x1b" not in shown.err
    with phase("scoring", 3, show=False) as bar:
        bar.advance()
    assert capfd.readouterr() == ("", "")


def test_nothing_is_shown_in_silence_and_everything_after_it(capfd: pytest.CaptureFixture[str]) -> None:
    with silenced(), phase("scoring", 3, show=True) as bar:
        bar.advance()
    assert capfd.readouterr() == ("", "")
    with phase("scoring", 3, show=True):
        pass
    assert "scoring" in capfd.readouterr().err
