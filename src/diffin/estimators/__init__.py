"""Estimators: each is one file that builds probes."""

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


def default(trajectory: Trajectory) -> ProbingEstimator:
    """The most accurate estimator for a training: `Unrolled`, or `TracIn` where the optimizer's update is not known."""
    known = trajectory.optimizer is None or trajectory.optimizer.supported
    return Unrolled() if known else TracIn()
