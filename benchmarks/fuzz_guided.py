"""Mutates files towards new paths of the code that reads them: ``python benchmarks/fuzz_guided.py --minutes 10``.

Where `fuzz.py` damages files at random by what it knows of their formats, atheris (``pip install ".[fuzz]"``) looks at which
lines a mutation reached, and mutates further those that reached new ones. Reading may give what is left, or a
``DiffinError``; the first failure ends a process, and its input is kept for ``--again FILE``.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import atheris

# In the place of this folder, as in `fuzz.py`.
sys.path[0] = str(Path(__file__).parents[1] / "tests")

with atheris.instrument_imports(include=["diffin"]):
    from diffin.errors import DiffinError
    from fuzz.guarded import guarded
    from fuzz.subjects import SUBJECTS

_LARGEST = 1 << 15
"""Bytes of a file; coverage grows with small ones."""


def fuzz(name: str, seconds: int, seed: int, again: str | None) -> None:
    """Mutate one kind of files in this process, which ends with it."""
    logging.disable(logging.WARNING)
    subject = SUBJECTS[name]
    made = Path(tempfile.mkdtemp(prefix="diffin-fuzz-"))
    whole, copy, corpus = made / "whole", made / "copy", made / "corpus"
    whole.mkdir()
    corpus.mkdir()
    subject.make(whole)
    files = [path for path in sorted(whole.rglob("*")) if path.is_file()]
    small = [path for path in files if path.stat().st_size <= _LARGEST]
    if not small:
        print(f"{name}: no file of at most {_LARGEST} bytes")
        return
    for number, path in enumerate(small):
        for sealed in (0, 1):
            (corpus / f"{number}-{sealed}").write_bytes(bytes([number % 256, sealed]) + path.read_bytes())

    def one(data: bytes) -> None:
        if len(data) < 2:
            return
        path = small[data[0] % len(small)]
        for place in (copy, copy.with_name("copy-index")):
            shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(whole, copy)
        (copy / path.relative_to(whole)).write_bytes(data[2:])
        if data[1] % 2:
            with suppress(Exception):  # too damaged to be given checksums
                subject.seal(copy)
        with suppress(DiffinError), guarded():
            subject.read(copy)

    # The library under atheris ends the process itself, so the folder is left to the one that started this.
    print(f"folder {made}", flush=True)
    where = [again] if again else [str(corpus), f"-max_total_time={seconds}", f"-seed={seed}", f"-max_len={_LARGEST}"]
    atheris.Setup([sys.argv[0], *where, "-timeout=60", "-rss_limit_mb=0", "-print_final_stats=1"], one)
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="for all subjects together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--subject", choices=list(SUBJECTS), help="this one, in this process")
    parser.add_argument("--seconds", type=int, default=60, help="for --subject")
    parser.add_argument("--again", metavar="FILE", help="with --subject: the input of a failure, once")
    given = parser.parse_args()
    if given.subject:
        fuzz(given.subject, given.seconds, given.seed, given.again)
        return
    seconds = max(1, int(60 * given.minutes / len(SUBJECTS)))
    failed = []
    print("| what reads | mutations | lines reached first, last | ends |\n|---|---|---|---|")
    for name in SUBJECTS:
        command = [sys.executable, __file__, "--subject", name, "--seconds", str(seconds), "--seed", str(given.seed)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        print(f"| {name} | {' | '.join(_summary(done.stderr))} | {done.returncode} |", flush=True)
        if done.returncode:
            failed.append(f"{name}:\n{(done.stdout + done.stderr)[-3000:]}")
        for line in done.stdout.splitlines():
            if line.startswith("folder "):
                shutil.rmtree(line.removeprefix("folder "), ignore_errors=True)
    print("\n".join(failed))
    sys.exit(bool(failed))


def _summary(said: str) -> tuple[str, str]:
    """Mutations, and the coverage that libFuzzer printed at first and at last."""
    covered = [line.split("cov: ")[1].split()[0] for line in said.splitlines() if "cov: " in line]
    executed = [line.split()[-1] for line in said.splitlines() if "number_of_executed_units" in line]
    return (executed[-1] if executed else "?", f"{covered[0]}, {covered[-1]}" if covered else "?")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
