"""Deleting samples from a model: parameters as if it had never seen them, and a certificate of what was measured."""

from diffin.actions.delete.certificate import Certificate, Certified, Measured
from diffin.actions.delete.delete import delete
from diffin.actions.delete.deletion import Deletion
from diffin.actions.delete.estimator import Linearised
from diffin.actions.delete.measuring import certify, retrain
from diffin.actions.delete.regime import Regime

__all__ = ["Certificate", "Certified", "Deletion", "Linearised", "Measured", "Regime", "certify", "delete", "retrain"]
