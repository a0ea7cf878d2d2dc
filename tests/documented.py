"""The code of a page, run: Python in one namespace, commands in the working folder."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from typer.testing import CliRunner

from diffin.cli import app

ROOT = Path(__file__).parents[1]
_BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^\n]+?) -->\n+)?"
    r"^(?P<indent> *)```(?P<language>\w+)(?P<after>[^\n]*)\n(?P<text>.*?)^(?P=indent)```$",
    re.DOTALL | re.MULTILINE,
)
_SHELLS = ("console", "sh", "bash")


@dataclass(frozen=True)
class Block:
    """A block of code of a page.

    Attributes:
        page: the file.
        line: where its text begins.
        language: as the fence says.
        title: of a file that the reader is to write; "" for code that is run.
        text: the code.
        reason: why it is not run; ``None`` where it is.
    """

    page: Path
    line: int
    language: str
    title: str
    text: str
    reason: str | None

    def run(self, space: dict[str, Any]) -> str:
        """Run it, and return what commands printed. Lines of an error are those of the page."""
        if self.title:
            Path(self.title).write_text(self.text, encoding="utf-8")
            return ""
        if self.language == "python":
            exec(compile("\n" * (self.line - 1) + self.text, str(self.page), "exec"), space)
            return ""
        return "".join(_command(words) for line in _lines(self.text) if (words := shlex.split(line, comments=True)))


def blocks(page: Path) -> list[Block]:
    """Blocks of Python and of commands, in the order of the page."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        if match["language"] != "python" and match["language"] not in _SHELLS:
            continue
        title = re.search(r'title="([^"]+)"', match["after"])
        code = re.sub(rf"^{match['indent']}", "", match["text"], flags=re.MULTILINE)
        line = text.count("\n", 0, match.start("text")) + 1
        found.append(Block(page, line, match["language"], title[1] if title else "", code, match["reason"]))
    return found


def _lines(text: str) -> list[str]:
    return text.replace("\\\n", " ").splitlines()


def _command(words: list[str]) -> str:
    if words[0] == "torchrun" or "ray" in words:  # Ends what it has started with itself.
        return _process(words)
    run: Callable[[list[str]], str] | None = {"diffin": _diffin, "python": _python}.get(words[0])
    if run is None:
        raise AssertionError(f"{shlex.join(words)}: mark the block with <!-- not run: reason -->, or teach the test")
    return run(words[1:])


def _diffin(arguments: list[str]) -> str:
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, f"diffin {shlex.join(arguments)}\n{done.output}"
    return done.output


def _python(arguments: list[str]) -> str:
    file, *rest = arguments
    with patch.object(sys, "argv", [file, *rest]):
        runpy.run_path(file, run_name="__main__")
    return ""


def _process(words: list[str]) -> str:
    command = [str(Path(sys.executable).with_name(words[0])), *words[1:]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=600)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}{done.stderr}"
    return done.stdout
