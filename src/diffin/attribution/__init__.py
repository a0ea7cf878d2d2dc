"""Pairwise attribution: for each query, the training samples that helped it most and those that harmed it most."""

from diffin.attribution.pairs import attribute
from diffin.attribution.result import Attribution

__all__ = ["Attribution", "attribute"]
