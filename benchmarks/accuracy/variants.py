"""What the settings of Unrolled are worth: each against the expected influence that compare.py has found.

    python benchmarks/accuracy/variants.py [CASE ...]     # seed 0; run compare.py on them first

Prints a table of Spearman correlations and seconds: how the adjoint is carried, the number of checkpoints or states, the
rank, the curvature set, and how a Hessian product is taken.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from scipy.stats import spearmanr

import diffin
from cases import case, record
from diffin.evaluation import Truth
from diffin.tasks import Classification

CACHE = Path(__file__).resolve().parents[1] / ".cache" / "accuracy"
DEFAULT = ("mlp-sgd", "mlp-adamw+flips")

_SEGMENTS = diffin.Unrolled(propagation="segments")
_STEPS = diffin.Unrolled(propagation="steps")
VARIANTS = {
    "segments, 10 checkpoints, rank 10, all samples": (10, _SEGMENTS),
    "... rank 5": (10, replace(_SEGMENTS, rank=5)),
    "... rank 20": (10, replace(_SEGMENTS, rank=20)),
    "... 300 curvature samples": (10, replace(_SEGMENTS, curvature_samples=300)),
    "... 100 curvature samples": (10, replace(_SEGMENTS, curvature_samples=100)),
    "... products by differences": (10, replace(_SEGMENTS, hessian="difference")),
    "... Gauss-Newton products": (10, replace(_SEGMENTS, hessian="gauss-newton")),
    "... 10 checkpoints, dense early (LogSpaced)": (diffin.LogSpaced(10), _SEGMENTS),
    "... 20 checkpoints": (20, _SEGMENTS),
    "... 50 checkpoints": (50, _SEGMENTS),
    "steps, 1 state": (10, replace(_STEPS, states=1)),
    "steps, 2 states": (10, replace(_STEPS, states=2)),
    "steps, 3 states": (10, replace(_STEPS, states=3)),
    "steps, 5 states": (10, replace(_STEPS, states=5)),
    "steps, 10 states": (10, _STEPS),
    "steps, 20 states": (10, replace(_STEPS, states=20)),
    "steps, 40 states": (10, replace(_STEPS, states=40)),
    "steps, 10 states, Gauss-Newton products": (10, replace(_STEPS, hessian="gauss-newton")),
}


def main(names: tuple[str, ...]) -> None:
    torch.set_num_threads(1)
    found: dict[str, list[str]] = {name: [] for name in VARIANTS}
    for name in names:
        studied = case(name)
        truth = Truth.open(CACHE / f"{name}-0" / "truths" / "expected").influence
        for variant, (checkpoints, estimator) in VARIANTS.items():
            with tempfile.TemporaryDirectory() as folder:
                model, trajectory = record(studied, Path(folder) / "run", checkpoints=checkpoints)
                start = time.perf_counter()
                scores = diffin.score(
                    Classification(model), trajectory, studied.train, query=studied.query, estimator=estimator,
                    progress=False,
                )  # fmt: skip
                seconds = time.perf_counter() - start
            found[variant].append(f"{spearmanr(scores.influence, truth)[0]:.3f} | {seconds:.1f}")
            print(f"{name}: {variant}: {found[variant][-1]}", file=sys.stderr, flush=True)
    print("| Unrolled | " + " | ".join(f"{name} | seconds" for name in names) + " |")
    print("|---|" + "---|---|" * len(names))
    for variant, cells in found.items():
        print(f"| {variant} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main(tuple(sys.argv[1:]) or DEFAULT)
