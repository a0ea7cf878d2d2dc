"""Scoring: probes and samples in, one row a sample out."""

from diffin.scoring.engine import Engine
from diffin.scoring.engines import Local, Ray, ScoringEngine, Torchrun
from diffin.scoring.influence import score
from diffin.scoring.run import score_probes
from diffin.scoring.scores import Scores
from diffin.scoring.stability import Stability

__all__ = [
    "Engine", "Local", "Ray", "Scores", "ScoringEngine", "Stability", "Torchrun", "score", "score_probes",
]  # fmt: skip
