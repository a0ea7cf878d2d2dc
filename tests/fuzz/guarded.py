"""Reading what is damaged, with an eye on what must not happen: other errors, hanging, memory, files elsewhere."""

from __future__ import annotations

import resource
import shutil
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import FrameType

from diffin.errors import DiffinError
from fuzz.damage import damage
from fuzz.subjects import Subject

MEMORY = 2 << 30
SECONDS = 20


class TooLongError(BaseException):
    """Not one that anything catches."""


@contextmanager
def guarded(memory: int = MEMORY, seconds: int = SECONDS) -> Iterator[None]:
    """Let nothing take that much more memory, or that long."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TooLongError

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + memory
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard < 0 else min(limit, hard), hard))
    try:
        yield
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGALRM, before)


@dataclass(frozen=True)
class Outcome:
    """What came of reading a damaged folder.

    Attributes:
        how: it was damaged.
        said: the kind of error, "read", or what must not be.
        trace: of an error that must not be; empty otherwise.
    """

    how: str
    said: str
    trace: str = ""


def attempt(subject: Subject, whole: Path, folder: Path, random: Random) -> Outcome:
    """Copy a whole folder, damage it, read it.

    Args:
        subject: what reads.
        whole: as ``subject.make`` left it.
        folder: for the copy; emptied before.
        random: decides.
    """
    for place in (folder, folder.with_name(folder.name + "-index")):
        shutil.rmtree(place, ignore_errors=True)
    # Times stay, which an index of shards goes by.
    shutil.copytree(whole, folder)
    how = " and ".join(damage(folder, random) for _ in range(random.choice([1, 1, 2])))
    if random.randrange(4) and all(path.is_file() or path.is_dir() for path in folder.rglob("*")):
        with suppress(Exception):  # too damaged to be given checksums
            subject.seal(folder)
            how += ", sealed"
    before = listing(folder)
    try:
        with guarded():
            subject.read(folder)
    except DiffinError as error:
        said, trace = type(error).__name__, ""
    except (Exception, TooLongError) as error:
        return Outcome(how, f"!{type(error).__name__}", traceback.format_exc())
    else:
        said, trace = "read", ""
    if listing(folder) != before and not (folder / "index").exists():
        return Outcome(how, "!wrote", "files that are read were changed")
    return Outcome(how, said, trace)


def listing(folder: Path) -> set[tuple[str, int]]:
    return {
        (str(path), 0 if path.is_symlink() else path.lstat().st_size)
        for path in folder.parent.rglob("*")
        if not path.is_relative_to(folder.with_name(folder.name + "-index"))
    }
