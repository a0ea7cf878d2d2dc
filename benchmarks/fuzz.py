"""Damages files of every format for as long as is asked, and reads them: ``python benchmarks/fuzz.py --minutes 10``.

Reading may give what is left, or a ``DiffinError``. Anything else is a failure: another error, more than 20 seconds, more
than 2 GiB of memory, a file written, a process that dies. Of each failure the seed is printed, which makes it again:
``python benchmarks/fuzz.py --subject scores --seed 17 --count 1``.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from random import Random

# In the place of this folder, where this very file has the name of what is imported.
sys.path[0] = str(Path(__file__).parents[1] / "tests")

from fuzz.guarded import attempt  # noqa: E402 - see above
from fuzz.subjects import SUBJECTS  # noqa: E402

_BATCH, _MOST_SECONDS = 500, 900


def run(name: str, seed: int, count: int) -> None:
    """Attempts from a seed on; a line of JSON for each."""
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        (folder / "whole").mkdir()
        (folder / "work").mkdir()
        SUBJECTS[name].make(folder / "whole")
        for number in range(seed, seed + count):
            print(json.dumps({"seed": number}), flush=True)
            found = attempt(SUBJECTS[name], folder / "whole", folder / "work" / "copy", Random(number))
            print(json.dumps({"how": found.how, "said": found.said, "trace": found.trace}), flush=True)


def batch(name: str, seed: int, count: int) -> list[dict[str, object]]:
    """The same in a process of its own, which may die."""
    command = [sys.executable, __file__, "--subject", name, "--seed", str(seed), "--count", str(count)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_MOST_SECONDS, check=False)
        text, ending = done.stdout, f"!process ended with {done.returncode}" if done.returncode else ""
        told = done.stderr
    except subprocess.TimeoutExpired as error:
        text, ending, told = (error.stdout or b"").decode(), "!process hangs", ""
    found: list[dict[str, object]] = []
    at = seed
    for line in text.splitlines():
        entry = json.loads(line)
        at = entry.get("seed", at)
        if "said" in entry:
            found.append({"seed": at, **entry})
    if ending:
        found.append({"seed": at, "how": "", "said": ending, "trace": told[-2000:]})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--subject", choices=list(SUBJECTS))
    parser.add_argument("--count", type=int)
    given = parser.parse_args()
    if given.count is not None:
        run(given.subject, given.seed, given.count)
        return
    names = [given.subject] if given.subject else list(SUBJECTS)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    failures: dict[tuple[str, str], tuple[dict[str, object], int]] = {}
    end, seed = time.monotonic() + 60 * given.minutes, given.seed
    while time.monotonic() < end:
        for name in names:
            if time.monotonic() >= end:
                break
            for entry in batch(name, seed, _BATCH):
                said = str(entry["said"])
                counts[name]["read" if said == "read" else "failure" if said[0] == "!" else "refused"] += 1
                if said[0] == "!":
                    place = (name, said + "".join(str(entry["trace"]).splitlines()[-3:]))
                    failures[place] = (failures.get(place, (entry, 0))[0], failures.get(place, (entry, 0))[1] + 1)
        seed += _BATCH
    print(f"{'':22}{'attempts':>10}{'read':>10}{'refused':>10}{'failures':>10}")
    total: Counter[str] = Counter()
    for name, count in [*counts.items(), ("all", total)]:
        total.update(count if name != "all" else {})
        print(f"{name:22}{count.total():10}{count['read']:10}{count['refused']:10}{count['failure']:10}")
    for (name, _), (entry, number) in failures.items():
        print(f"\n{number} times, {name}, first with seed {entry['seed']}: {entry['how']}: {entry['said']}")
        print("\n".join(f"    {line}" for line in str(entry["trace"]).splitlines()[-9:]))
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
