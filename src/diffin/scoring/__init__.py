"""Scoring: probes and samples in, one row a sample out."""

from diffin.scoring.engine import Engine
from diffin.scoring.influence import score
from diffin.scoring.run import score_probes
from diffin.scoring.scores import Scores
from diffin.scoring.stability import Stability

__all__ = ["Engine", "Scores", "Stability", "score", "score_probes"]
