"""What the course of training says of a sample, by forward passes alone: losses, margins, errors, features."""

from diffin.signals.observe import observe
from diffin.signals.signals import Signals

__all__ = ["Signals", "observe"]
