"""Ready-made tasks: what the loss of a sample is."""

from diffin.tasks.classification import Classification
from diffin.tasks.contrastive import Contrastive, TwoTowers
from diffin.tasks.function import FunctionTask
from diffin.tasks.language_model import LanguageModel
from diffin.tasks.regression import Regression

__all__ = ["Classification", "Contrastive", "FunctionTask", "LanguageModel", "Regression", "TwoTowers"]
