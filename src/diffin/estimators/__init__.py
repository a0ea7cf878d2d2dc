"""Estimators: each is one file that builds probes."""

import logging

from diffin.estimators.base import Estimator, LocalEstimator, Moment, ProbingEstimator
from diffin.estimators.build import build_probes
from diffin.estimators.diffin import DiffIn
from diffin.estimators.inverse_hessian import InverseHessian
from diffin.estimators.moso import MoSo
from diffin.estimators.replay import Replay
from diffin.estimators.tracin import TracIn
from diffin.estimators.unrolled import Unrolled
from diffin.trajectory import Trajectory

__all__ = [
    "DiffIn",
    "Estimator",
    "InverseHessian",
    "LocalEstimator",
    "MoSo",
    "Moment",
    "ProbingEstimator",
    "Replay",
    "TracIn",
    "Unrolled",
    "build_probes",
    "default",
]

_log = logging.getLogger(__name__)


def default(trajectory: Trajectory) -> ProbingEstimator:
    """The most accurate estimator for a training: `Unrolled`, or `TracIn` where the optimizer's update is not known."""
    optimizer = trajectory.optimizer
    if optimizer is None or optimizer.supported:
        return Unrolled()
    _log.warning("scoring with TracIn, because the update of %s is not known and cannot be unrolled", optimizer.kind)
    return TracIn()
