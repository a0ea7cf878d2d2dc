"""Whenever the process is killed, there is nothing at the destination, or everything."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_a_killed_export_leaves_nothing_or_everything(tmp_path: Path) -> None:
    script = Path(__file__).with_name("killed_export.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), "5", "0"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    half_written = json.loads(done.stdout.splitlines()[-1])
    assert half_written == {"images": 5, "dataset": 5, "table": 5, "shards": 5}
