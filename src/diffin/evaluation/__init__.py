"""Ground truth by training again, and how well scores agree with it."""

from diffin.evaluation.expected import expected_influence
from diffin.evaluation.metrics import Agreement, agreement
from diffin.evaluation.retraining import leave_groups_out, leave_one_out, subsets
from diffin.evaluation.truth import Kind, Truth

__all__ = [
    "Agreement",
    "Kind",
    "Truth",
    "agreement",
    "expected_influence",
    "leave_groups_out",
    "leave_one_out",
    "subsets",
]
