"""The benchmark of scoring pairs runs in its smallest form; its figures mean nothing there."""

from __future__ import annotations

import subprocess
import sys

from documented import ROOT

SCRIPT = ROOT / "benchmarks" / "contrastive" / "throughput.py"


def test_every_precision_has_a_row_with_a_ratio_and_an_error() -> None:
    sizes = ["--device", "cpu", "--model", "tiny", "--group", "8", "--samples", "16", "--repetitions", "1"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *sizes, "--estimators", "unrolled"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    table = [line for line in done.stdout.splitlines() if line.startswith("|")]
    columns, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in table)
    found = [dict(zip(columns, row, strict=True)) for row in rows]
    assert [(row["precision"], row["back end"]) for row in found] == [
        ("float32", "`difference`"),
        ("bfloat16", "`forward`"),
    ]
    for row in found:
        assert (row["device"], row["model"], row["group"], row["estimator"]) == ("cpu", "tiny", "8", "unrolled")
        for name in ("plain inference, pairs/s", "scoring, pairs/s", "over plain inference", "peak memory, MiB"):
            assert float(row[name].replace(",", "")) > 0, name
        assert 0 <= float(row["error of the self-check"]) < 0.1
