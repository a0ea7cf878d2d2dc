"""Run by test_engines: scores on a Ray cluster of its own, in a process of its own, since Ray reads its environment once.

Usage: scoring_by_ray.py OUTPUT PROBES PROBLEM. Prints, as JSON, what was seen.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import ray
import ray.data
import torch
from scoring_of_ranks import OPTIONS, Made, task

from diffin.probes import ProbeSet
from diffin.scoring import Ray, score_probes


class Unsendable(Made):
    def __reduce__(self):
        raise TypeError("it holds a socket")


def main() -> None:
    torch.set_num_threads(1)
    output, probes, problem = Path(sys.argv[1]), ProbeSet.open(sys.argv[2]), sys.argv[3]
    ray.init(address="local", num_cpus=2, object_store_memory=10**8, include_dashboard=False, log_to_driver=False)
    shown = ray.data.DataContext.get_current().enable_progress_bars
    seen = {}
    try:
        score_probes(task(), probes, Made("damaged"), output=output / "sent", engine="ray", **OPTIONS)
    except OSError as error:
        seen["damaged"] = [str(error), *error.__notes__]
    seen["there"] = {file.name: file.stat().st_mtime_ns for file in (output / "sent").glob("part-*")}
    scores = score_probes(task(), probes, Made(), output=output / "sent", engine=Ray(workers=2), **OPTIONS)
    seen["rows"] = len(scores)
    options = {**OPTIONS, "output": output / "loaded"}
    try:
        score_probes(task(), probes, Unsendable(), engine="ray", **options)
    except Exception as error:
        seen["unsendable"] = f"{type(error).__name__}: {error}"
    score_probes(task(), probes, Unsendable(), engine=Ray(workers=1, problem=problem), **options)
    seen["as before"] = ray.is_initialized() and ray.data.DataContext.get_current().enable_progress_bars == shown
    sys.stdout.write(json.dumps(seen))


if __name__ == "__main__":
    main()
