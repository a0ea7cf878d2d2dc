"""How long it takes somebody who has nothing: from an empty folder and an empty environment to a page of scores.

    python benchmarks/newcomers.py                 # minutes; installs from the index that pip is set up with
    python benchmarks/newcomers.py --only own-loop --keep /tmp/newcomer

Three ways in: the demo of the README, the tutorial on one's own loop, and the one on the Trainer of transformers. Each is
done with what its page says and nothing else: the blocks are read from the page, files are written as they stand there, and
commands are run in the order of the page, in a new folder, by the programs of a new environment. Versions are those of
constraints.txt. Prints one table in Markdown.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[1:1] = [str(Path(__file__).parent), str(ROOT / "tests")]

from documented import Block, blocks  # noqa: E402
from table import Table, machine  # noqa: E402

INSTALLED = re.compile(r"`python -m (?P<command>pip install [^`]+)`")
ABOUT_DIFFIN = re.compile(r"diffin|[Rr]ecorder|dataset_size=|def problem")
LEFT_BEHIND = (
    ".git",
    ".venv*",
    ".cache",
    "*_cache",
    "__pycache__",
    ".hypothesis",
    "site",
    "dist",
    "runs",
    "diffin-demo",
)


@dataclass
class Clock:
    """Seconds of what was run, by the wall and by the processor."""

    wall: float = 0.0
    processor: float = 0.0

    def run(self, command: Sequence[str], folder: Path, environment: dict[str, str]) -> None:
        start, before = time.perf_counter(), _processor()
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        self.wall += time.perf_counter() - start
        self.processor += _processor() - before
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")


@dataclass
class Way:
    """What one way in took.

    Attributes:
        installing: the environment and all that goes into it.
        running: every command after that.
        commands: how many were given, the installation among them.
        files: lines of the files that were pasted.
        own: those of them that are about diffin: imports, the recorder, and the function for the command line.
    """

    name: str
    installing: Clock = field(default_factory=Clock)
    running: Clock = field(default_factory=Clock)
    commands: int = 0
    files: int = 0
    own: int = 0

    def row(self) -> list[str]:
        clocks = [self.installing.wall, self.installing.processor, self.running.wall, self.running.processor]
        return [
            self.name,
            *(f"{seconds:.0f}" for seconds in clocks),
            str(self.commands),
            str(self.files),
            str(self.own),
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=WAYS, action="append", help="may be repeated")
    parser.add_argument("--python", default="python3", help="that the environments are made with")
    parser.add_argument("--keep", type=Path, help="a folder for everything; by default one that is removed")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp()) if given.keep is None else given.keep.resolve()
    table = Table(
        "",
        "way in",
        "installation, s",
        "of a processor",
        "the rest, s",
        "of a processor",
        "commands",
        "lines pasted",
        "about diffin",
    )
    try:
        for name in given.only or WAYS:
            print(f"{name} ...", file=sys.stderr, flush=True)
            empty = folder / name
            empty.mkdir(parents=True)
            table.add(*WAYS[name](name, empty, given.python).row())
    finally:
        if given.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    print(table.markdown())
    print(machine())


def demo(name: str, empty: Path, python: str) -> Way:
    """``make demo`` in a copy of the project, whose first half is the installation."""
    way = Way("`make demo`", commands=1)
    project = empty / "diffin"
    shutil.copytree(ROOT, project, ignore=shutil.ignore_patterns(*LEFT_BEHIND))
    way.installing.run(["make", f"PYTHON={python}", ".venv/.ready"], project, dict(os.environ))
    way.running.run(["make", f"PYTHON={python}", "demo"], project, dict(os.environ))
    return way


def tutorial(name: str, empty: Path, python: str) -> Way:
    """A page of docs/tutorials, from top to bottom."""
    page = ROOT / "docs" / "tutorials" / f"{name}.md"
    said = INSTALLED.search(page.read_text(encoding="utf-8"))
    if said is None:
        raise SystemExit(f"{page} does not say what to install")
    way, folder, programs = Way(name), empty / "here", empty / "venv" / "bin"
    folder.mkdir()
    environment = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    way.installing.run([python, "-m", "venv", str(programs.parent)], empty, environment)
    install = f"python -m {said['command']} -c constraints.txt --quiet"
    way.installing.run(["bash", "-c", install], ROOT, environment)
    way.commands += 2
    for block in blocks(page):
        if block.reason is None:
            _follow(block, way, folder, environment)
    return way


def _follow(block: Block, way: Way, folder: Path, environment: dict[str, str]) -> None:
    lines = [line for line in block.text.splitlines() if line.strip()]
    if block.title:
        (folder / block.title).write_text(block.text, encoding="utf-8")
        way.files += len(lines)
        way.own += sum(bool(ABOUT_DIFFIN.search(line)) for line in lines)
    elif block.language == "python":
        way.commands += 1
        way.running.run(["python", "-c", block.text], folder, environment)
    else:
        way.commands += len(lines)
        way.running.run(["bash", "-euc", block.text], folder, environment)


def _processor() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


WAYS = {"demo": demo, "own-loop": tutorial, "hugging-face": tutorial}

if __name__ == "__main__":
    main()
