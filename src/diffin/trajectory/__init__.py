"""What training left behind: recording it, and reading it back."""

from diffin.trajectory.checkpoints import Checkpoint
from diffin.trajectory.optimizers import OptimizerDescription, ParameterGroup
from diffin.trajectory.record import Recorder
from diffin.trajectory.schedule import LogSpaced
from diffin.trajectory.steps import StepLog
from diffin.trajectory.trajectory import Trajectory

__all__ = ["Checkpoint", "LogSpaced", "OptimizerDescription", "ParameterGroup", "Recorder", "StepLog", "Trajectory"]
