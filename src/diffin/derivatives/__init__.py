"""Gradients, Hessian products, and directional derivatives of per-sample losses."""

from diffin.derivatives.base import Directional, Measure, Measured
from diffin.derivatives.difference import Difference
from diffin.derivatives.forward import Forward
from diffin.derivatives.ghost import Ghost
from diffin.derivatives.gradient import MeanLoss, SampleSet, mean_gradient
from diffin.derivatives.hessian import hessian_vector_product
from diffin.derivatives.selfcheck import Choice, SelfCheck, choose, from_description

__all__ = [
    "Choice",
    "Difference",
    "Directional",
    "Forward",
    "Ghost",
    "MeanLoss",
    "Measure",
    "Measured",
    "SampleSet",
    "SelfCheck",
    "choose",
    "from_description",
    "hessian_vector_product",
    "mean_gradient",
]
