"""What training on a set of samples did to the parameters."""

from diffin.parameters.compute import parameter_influence
from diffin.parameters.influence import ParameterInfluence

__all__ = ["ParameterInfluence", "parameter_influence"]
