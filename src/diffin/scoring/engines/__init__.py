"""Engines: who measures the parts of scores."""

from __future__ import annotations

from typing import Literal

from diffin.errors import ScoringError
from diffin.scoring.engines.base import Job, ScoringEngine
from diffin.scoring.engines.local import Local
from diffin.scoring.engines.ray import Ray
from diffin.scoring.engines.torchrun import Torchrun

EngineName = Literal["local", "torchrun", "ray"]
EngineLike = EngineName | ScoringEngine

_KNOWN: dict[str, type[ScoringEngine]] = {"local": Local, "torchrun": Torchrun, "ray": Ray}


def chosen(engine: EngineLike) -> ScoringEngine:
    """The engine of that name with its default settings, or the one that was passed.

    Raises:
        ScoringError: there is none.
    """
    if isinstance(engine, ScoringEngine):
        return engine
    if not isinstance(engine, str) or engine not in _KNOWN:
        raise ScoringError(
            f"engine={engine!r}; pass 'local', 'torchrun' or 'ray', or one with settings, e.g. diffin.scoring.Ray(workers=4)"
        )
    return _KNOWN[engine]()


__all__ = ["EngineLike", "EngineName", "Job", "Local", "Ray", "ScoringEngine", "Torchrun", "chosen"]
