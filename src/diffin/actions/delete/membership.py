"""Can one tell from a model whether samples were trained on? Two attacks, measured by the area under their ROC curve.

The *loss threshold* (Yeom et al., "Privacy Risk in Machine Learning", 2018) takes a sample of low loss for a member. The
*population attack* asks how low that is for this very sample: shadow models, trained without it, say what its loss would be
(offline LiRA of Carlini et al., "Membership Inference Attacks From First Principles", 2022, with one variance for all).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from diffin.rerun import Rerun
from diffin.rerun.many import choose_manner, final_states
from diffin.sources import Indices

Floats = npt.NDArray[np.float64]


def area_under_curve(members: Floats, others: Floats) -> float:
    """The probability that a member has the higher score, ties counted half; 0.5 tells nothing, NaN without samples."""
    if not len(members) or not len(others):
        return float("nan")
    order = np.sort(others)
    below, up_to = (np.searchsorted(order, members, side) for side in ("left", "right"))
    return float((below + up_to).mean() / (2 * len(others)))


def logit_of_probability(losses: Floats) -> Floats:
    """``log(p / (1 - p))`` of ``p = exp(-loss)``, which is about normal over models. Float64[ndarray, "..."]"""
    losses = np.maximum(losses, 1e-12)
    found: Floats = -losses - np.log(-np.expm1(-losses))
    return found


def population_scores(losses: Floats, without: Floats) -> Floats:
    """How much likelier a sample is than models that were not trained on it make it. Float64[ndarray, "n"]

    Args:
        losses: Float64[ndarray, "n"], of the model under attack.
        without: Float64[ndarray, "R n"], of shadow models; NaN where one was trained on the sample.
    """
    confidence = logit_of_probability(without)
    mean = np.nanmean(confidence, axis=0)
    spread = float(np.sqrt(np.nanmean((confidence - mean) ** 2)))
    found: Floats = (logit_of_probability(losses) - mean) / max(spread, 1e-12)
    return found


def shadow_states(
    rerun: Rerun, chosen: Indices, count: int, seed: int, advance: Callable[[int], None]
) -> tuple[list[dict[str, Tensor]], npt.NDArray[np.bool_]]:
    """The recorded training repeated ``count`` times, each without a random half of the chosen samples.

    They come in pairs that leave out opposite halves, so that every sample is left out by half of them.

    Returns:
        The final states, every tensor of the model by name; and Bool[ndarray, "R Z"], which samples each was trained on.

    Raises:
        TrajectoryError: the training cannot be repeated.
    """
    generator = np.random.default_rng([seed, 3])
    trained_on = np.zeros((count, len(chosen)), dtype=bool)
    for pair in range(0, count, 2):
        trained_on[pair, generator.permutation(len(chosen))[: (len(chosen) + 1) // 2]] = True
        trained_on[pair + 1 : pair + 2] = ~trained_on[pair]
    weights = torch.ones(count, rerun.trajectory.dataset_size or 0, device=rerun.loss.device)
    for row, included in zip(weights, trained_on, strict=True):
        row[torch.from_numpy(chosen[~included]).to(row.device)] = 0
    with rerun.entered():
        states = final_states(rerun, weights, choose_manner(rerun), advance=advance)
        found = [{**rerun.loss.rest, **state.parameters, **state.buffers} for state in states]
    return found, trained_on
