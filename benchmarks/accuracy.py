"""The error of each back end, against exact nested forward mode in float64."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.utils.data import Subset, TensorDataset

import diffin
from diffin.probes import ProbeSet
from diffin.tasks import Classification

Vector = dict[str, Tensor]


@dataclass(frozen=True)
class Accuracy:
    """How far float32 scores of a back end are from exact ones.

    Attributes:
        error: Euclidean norm of the difference over that of the exact scores.
        rank_agreement: Spearman correlation over the samples.
        step: what the back end chose, over the norm of the parameters.
    """

    error: float
    rank_agreement: float
    step: float | None


def measure(
    model: nn.Module, probes: ProbeSet, train: TensorDataset, samples: int, *, seed: int = 0
) -> dict[str, Accuracy]:
    """Scores of a random part of the samples by every back end, compared with exact ones of the same probes."""
    chosen = np.sort(np.random.default_rng(seed).choice(len(train), samples, replace=False))
    part = Subset(train, chosen.tolist())
    exact = _exact_scores(model, probes, train.tensors[0][chosen], train.tensors[1][chosen])
    found = {}
    for name in ("difference", "ghost", "forward"):
        scores = diffin.score_probes(Classification(model), probes, part, derivatives=name, progress=False)
        error = float(np.linalg.norm(scores.influence - exact) / np.linalg.norm(exact))
        back_end = scores.metadata["derivatives"]
        found[name] = Accuracy(error, float(spearmanr(scores.influence, exact).statistic), back_end.get("step"))
    return found


def _exact_scores(model: nn.Module, probes: ProbeSet, inputs: Tensor, targets: Tensor) -> npt.NDArray[np.float64]:
    """Sum over probes of ``weight (D_u l_z + D2_{v,d} l_z)``."""
    model = copy.deepcopy(model).double().eval()
    inputs = inputs.double()
    total = torch.zeros(len(targets), dtype=torch.float64)
    for checkpoint in probes:
        point = _double(checkpoint.state)

        def losses(parameters: Vector) -> Tensor:
            return F.cross_entropy(functional_call(model, parameters, (inputs,)), targets, reduction="none")

        for probe in checkpoint.probes:
            first = jvp(losses, (point,), (_double(probe.u),))[1]
            second = torch.zeros_like(first)
            if probe.mixed is not None:
                v, d = map(_double, probe.mixed)
                second = jvp(lambda at, v=v: jvp(losses, (at,), (v,))[1], (point,), (d,))[1]
            total += probe.weight * (first + second)
    return total.numpy()


def _double(vector: Vector) -> Vector:
    return {name: tensor.double() for name, tensor in vector.items()}
