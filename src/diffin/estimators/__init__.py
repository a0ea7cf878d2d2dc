"""Estimators: each is one file that builds probes."""

from diffin.estimators.base import Estimator, Moment, build_probes
from diffin.estimators.diffin import DiffIn
from diffin.estimators.moso import MoSo
from diffin.estimators.tracin import TracIn

ESTIMATORS: dict[str, type[Estimator]] = {kind.name: kind for kind in (DiffIn, TracIn, MoSo)}
"""By the name that the command line uses."""

__all__ = ["ESTIMATORS", "DiffIn", "Estimator", "MoSo", "Moment", "TracIn", "build_probes"]
