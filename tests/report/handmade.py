"""Scores made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np

from diffin.scoring.columns import Rows, Terms, to_table
from diffin.scoring.manifest import Manifest
from diffin.scoring.scores import Scores
from diffin.scoring.sink import MemoryParts


def make_scores(terms: Any, losses: Any = None, steps: list[int] | None = None, kind: Terms = "draws") -> Scores:
    """Scores of the given terms, Float[N, m]; a NaN makes a failed sample."""
    terms = np.asarray(terms, dtype=np.float64)
    count, checkpoints = terms.shape
    losses = np.ones_like(terms) if losses is None else np.broadcast_to(np.asarray(losses)[:, None], terms.shape)
    steps = steps or [10 * (c + 1) for c in range(checkpoints)]
    failed = tuple(np.flatnonzero(~np.isfinite(terms).all(axis=1)).tolist())
    metadata = {"estimator": {"name": "diffin", "batch_size": 512, "seed": 0}, "query_size": 77, "total_steps": 100}
    check = {"name": "forward", "step": None, "error": 0.0123, "rank_agreement": 0.999, "cost": 3.5, "failure": None}
    parts = MemoryParts()
    parts.write(0, to_table(Rows(np.arange(count), np.ascontiguousarray(losses), terms), steps, kind))
    manifest = Manifest(
        probes={"digest": "d", "steps": steps, "counts": [1] * checkpoints, "metadata": metadata},
        derivatives={"name": "forward"},
        batch_size=64,
        part_rows=65_536,
        length=count,
        sample="",
        terms=kind,
        self_check={"chosen": "forward", "reference": "forward", "samples": 64, "back_ends": [check]},
    )
    return Scores(parts, manifest.completed(count, len(failed), failed))


def random_scores(count: int, checkpoints: int = 4, seed: int = 0, terms: Terms = "draws") -> Scores:
    generator = np.random.default_rng(seed)
    base = generator.normal(size=(count, 1))
    each = (base + 0.2 * generator.normal(size=(count, checkpoints))) * 1e-5
    return make_scores(each, generator.uniform(0.1, 3, size=count), kind=terms)
