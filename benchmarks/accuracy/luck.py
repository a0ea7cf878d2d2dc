"""Can one run tell how good its scores are? The figure of `diffin diagnose --luck`, held against the truth.

    python benchmarks/accuracy/luck.py      # from what compare.py has found; computes nothing

By case: the Spearman correlation of `Replay` with `Unrolled` (by steps) on one run, which needs no truth, beside that of
`Unrolled` with the expected influence, and the reliability of the latter.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

CACHE = Path(__file__).resolve().parents[1] / ".cache" / "accuracy"


def main() -> None:
    rows = []
    for path in sorted(CACHE.glob("*/result.json")):
        result = json.loads(path.read_text())
        ceiling = result["truths"].get("expected", {}).get("ceiling")
        agrees = [
            answer["agreement"]["expected"]["spearman"]
            for answer in result["answers"]
            if answer["name"] == "Unrolled, steps" and "expected" in answer.get("agreement", {})
        ]
        replay, unrolled = (path.parent / "influence" / f"{name}.npy" for name in ("replay", "unrolled-steps"))
        if ceiling is not None and agrees and replay.is_file() and unrolled.is_file():
            luck = float(spearmanr(np.load(replay), np.load(unrolled))[0])
            rows.append((luck, agrees[0], ceiling, f"{result['case']}, seed {result['seed']}"))
    print("| training | Replay with Unrolled, one run | Unrolled with the expected influence | ceiling |")
    print("|---|---|---|---|")
    for luck, agreement, ceiling, name in sorted(rows, reverse=True):
        print(f"| {name} | {luck:.2f} | {agreement:.2f} | {ceiling:.2f} |")
    if len(rows) > 2:
        together = float(spearmanr([row[0] for row in rows], [row[1] for row in rows])[0])
        print(f"\nOver {len(rows)} trainings, the two figures rank alike to {together:.2f} (Spearman).")


if __name__ == "__main__":
    main()
