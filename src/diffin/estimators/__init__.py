"""Estimators: each is one file that builds probes."""

from diffin.estimators.base import Estimator, Moment
from diffin.estimators.build import build_probes
from diffin.estimators.diffin import DiffIn
from diffin.estimators.moso import MoSo
from diffin.estimators.tracin import TracIn

__all__ = ["DiffIn", "Estimator", "MoSo", "Moment", "TracIn", "build_probes"]
