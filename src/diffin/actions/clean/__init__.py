"""Finding wrong labels in a training set, by what the training itself left behind, and acting on what a person decides."""

from diffin.actions.clean.cleaned import cleaned, write_cleaned
from diffin.actions.clean.compute import clean
from diffin.actions.clean.decisions import Decision, read_decisions
from diffin.actions.clean.single import SIGNALS
from diffin.actions.clean.suspects import Suspects

__all__ = ["SIGNALS", "Decision", "Suspects", "clean", "cleaned", "read_decisions", "write_cleaned"]
