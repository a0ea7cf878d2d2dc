"""What training on each sample did to a model, for every sample of a training set.

The words and the sign, everywhere: the influence of a sample is the effect of *training on it* on the loss of a query.
Negative helps, positive harms.
"""

from diffin import tasks
from diffin.actions.clean import Suspects, clean
from diffin.actions.delete import Deletion, Linearised, delete
from diffin.actions.select import Iterated, Selection, select
from diffin.attribution import Attribution, attribute
from diffin.errors import DiffinError
from diffin.estimators import DiffIn, Estimator, InverseHessian, MoSo, Replay, TracIn, Unrolled, build_probes
from diffin.explore import Explorer, explore
from diffin.own_influence import self_influence
from diffin.parameters import ParameterInfluence, parameter_influence
from diffin.probes import ProbeSet
from diffin.problem import Problem, load_problem
from diffin.scoring import Scores, score, score_probes
from diffin.sources import Indexed
from diffin.task import Task
from diffin.trajectory import Checkpoint, LogSpaced, Recorder, Trajectory

__version__ = "0.1.0"

__all__ = [
    # Record a training run.
    "Recorder",
    "LogSpaced",
    "Indexed",
    # Read it back.
    "Trajectory",
    "Checkpoint",
    # Say what is asked.
    "Task",
    "tasks",
    "Problem",
    "load_problem",
    # Estimate.
    "Estimator",
    "Unrolled",
    "Replay",
    "DiffIn",
    "TracIn",
    "InverseHessian",
    "MoSo",
    "build_probes",
    "ProbeSet",
    "score",
    "score_probes",
    "Scores",
    # Other questions.
    "self_influence",
    "attribute",
    "Attribution",
    "parameter_influence",
    "ParameterInfluence",
    # Look.
    "explore",
    "Explorer",
    # Act on the answer.
    "clean",
    "Suspects",
    "delete",
    "Deletion",
    "Linearised",
    "select",
    "Selection",
    "Iterated",
    # What can go wrong.
    "DiffinError",
]
