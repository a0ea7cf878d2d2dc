"""The single signals: what others look for wrong labels by, each a number a sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from diffin.actions.clean.neighbours import neighbour_shares
from diffin.signals import Signals
from diffin.signals.signals import Floats, Singles
from diffin.sources import Indices

SIGNALS: Mapping[str, int] = {
    "mean_loss": 1,
    "final_loss": 1,
    "area_under_margin": -1,
    "el2n": 1,
    "forgetting": 1,
    "confident": -1,
    "confident_final": -1,
    "neighbours_early": -1,
    "neighbours_final": -1,
    "neighbours": -1,
    "left_out": -1,
    "gradient_norm": 1,
    "self_influence_tracin": -1,
    "self_influence_diffin": -1,
    "self_influence_unrolled": -1,
    "loss_without": 1,
    "query_influence": 1,
}
"""The columns there can be, and whether a wrong label makes them large (1) or small (-1).

    mean_loss, final_loss          cross entropy over the states, and at the last
    area_under_margin              own logit less the largest other, mean over the states (Pleiss et al. 2020)
    el2n                           norm of softmax less one-hot, mean over the states (Paul et al. 2021)
    forgetting                     how often the net unlearned it between states (Toneva et al. 2019)
    confident, confident_final     probability of the given class less that of the likeliest other, each less what members of
                                   the class have on average: confident learning (Northcutt et al. 2021), of the mean
                                   probabilities and of the last ones
    neighbours_early, _final       share of the nearest neighbours with the same label, at these states
    neighbours, left_out           what the fusion has of its own: the same share, and the margin of the left-out prediction,
                                   over the states that learned nothing by heart
    gradient_norm                  of the loss of the sample, mean over the checkpoints (GraNd, Paul et al. 2021)
    self_influence_*               the effect of training on the sample on its own loss
    loss_without                   final loss less self-influence (Unrolled): what it would be without having been trained on
    query_influence                the effect of training on the sample on the held-out loss
"""


def forward_signals(signals: Signals) -> dict[str, Floats]:
    """The signals that need no derivative; large or small for a wrong label as ``SIGNALS`` says. Each Float64, "N"."""
    found = {
        "mean_loss": signals.mean_loss,
        "final_loss": signals.final_loss,
        "area_under_margin": signals.area_under_margin,
        "el2n": signals.mean_el2n,
        "forgetting": signals.forgetting.astype(np.float64),
        "confident": confident_margin(signals.probabilities, signals.labels),
        "confident_final": confident_margin(signals.final_probabilities, signals.labels),
    }
    for name, features in (("early", signals.early_features), ("final", signals.features)):
        if features is not None:
            shares = neighbour_shares(np.nan_to_num(features), signals.labels, signals.classes)
            found[f"neighbours_{name}"] = np.take_along_axis(shares, signals.labels[:, None], axis=1)[:, 0]
    return found


def confident_margin(probabilities: Singles, labels: Indices) -> Floats:
    """Probability of the given class less that of the likeliest other, after each class's own mean is taken off.

    The mean of a class, over the samples given it, is the threshold of confident learning (Northcutt et al. 2021).

    Args:
        probabilities: Float[ndarray, "N C"].
        labels: Int64[ndarray, "N"].

    Returns:
        Float64[ndarray, "N"], low for a wrong label.
    """
    wide = probabilities.astype(np.float64)
    thresholds = np.array([wide[labels == k, k].mean() if (labels == k).any() else 1.0 for k in range(wide.shape[1])])
    return own_margin(wide - thresholds, labels)


def own_margin(scores: Floats, labels: Indices) -> Floats:
    """The score of the given class less the largest other: Float64[ndarray, "N"] of Float64[ndarray, "N C"]."""
    rows = np.arange(len(labels))
    others = scores.copy()
    others[rows, labels] = -np.inf
    margin: Floats = scores[rows, labels] - others.max(axis=1)
    return margin


def together(columns: Mapping[str, Floats], names: Sequence[str]) -> Floats:
    """Normal scores of the ranks of several signals, summed so that large is suspicious: Float64[ndarray, "N"]."""
    from scipy.stats import norm, rankdata

    total = np.zeros(len(next(iter(columns.values()))))
    for name in names:
        ranks = rankdata(SIGNALS[name] * columns[name], nan_policy="omit")
        total += np.nan_to_num(norm.ppf((ranks - 0.5) / len(ranks)))
    return total
