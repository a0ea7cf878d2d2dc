"""The recorded training, executed again: as it was, with other weights of its samples, or in another order."""

from diffin.rerun.adjoint import Adjoint
from diffin.rerun.batches import Batches, Order, Part
from diffin.rerun.rerun import Rerun
from diffin.rerun.state import State
from diffin.rerun.update import Memory

__all__ = ["Adjoint", "Batches", "Memory", "Order", "Part", "Rerun", "State"]
