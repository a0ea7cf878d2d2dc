"""The command line, called in this process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from diffin.cli.main import main


def run_here(*arguments: object, cwd: Path, monkeypatch: pytest.MonkeyPatch) -> int | str | None:
    """`diffin` with these arguments in that folder, without the seconds that a process takes to begin; the exit code."""
    monkeypatch.chdir(cwd)
    monkeypatch.setattr(sys, "argv", ["diffin", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code
