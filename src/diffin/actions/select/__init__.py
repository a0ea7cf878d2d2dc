"""Keeping a part of a training set: by one score of every sample, by rules that spread, or by iterating."""

from diffin.actions.select.compute import select
from diffin.actions.select.iterated import Iterated
from diffin.actions.select.methods import METHODS, Method
from diffin.actions.select.selection import Cost, Kept, Selection

__all__ = ["METHODS", "Cost", "Iterated", "Kept", "Method", "Selection", "select"]
