"""How the parameters without the samples are found."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

from diffin.errors import DiffinError

_INTERVALS, _LARGE = 5, 0.05


@dataclass(frozen=True)
class Linearised:
    """The recorded training with and without the samples, of the network linearised along the path that it took.

    Where :class:`diffin.Unrolled` expands the training to first order in the weight of the samples, this follows its
    difference as it grows, with the loss as curved as it is: large sets and whole classes are within its reach. See
    :mod:`diffin.actions.delete.path`.

    Attributes:
        intervals: parts of the training at most, each passed by two implicit stages; ``None`` for 5, and 10 for sets above a
            twentieth of the training set.
        iterations: of the minimisation in a stage; each takes a gradient of the curvature set, twice as dear as one of
            training.
        curvature_samples: kept samples that stand for all, drawn anew in every interval; ``None`` for all.
        polish: iterations on the loss of the real network at the end, which take back what linearising broke; 0 for none.
        seed: of the draws.
    """

    intervals: int | None = None
    iterations: int = 15
    curvature_samples: int | None = 2048
    polish: int = 10
    seed: int = 0

    name: ClassVar[str] = "linearised"

    def __post_init__(self) -> None:
        for name, least in (("intervals", 1), ("iterations", 1), ("curvature_samples", 1), ("polish", 0), ("seed", 0)):
            value = getattr(self, name)
            if value is None and name not in ("intervals", "curvature_samples"):
                raise DiffinError(f"Linearised({name}=None): pass {least} or more")
            if value is not None and value < least:
                raise DiffinError(f"Linearised({name}={value}): pass {least} or more")

    def resolved(self, share: float) -> Linearised:
        """With the number of intervals decided, for a set that is this share of the training set."""
        if self.intervals is not None:
            return self
        return replace(self, intervals=_INTERVALS if share <= _LARGE else 2 * _INTERVALS)

    def describe(self) -> dict[str, Any]:
        """JSON-able: the name and the settings."""
        return {"name": self.name, **asdict(self)}
