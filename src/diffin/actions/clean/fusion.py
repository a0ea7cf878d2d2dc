"""One probability of every class for every sample, from what the states of a training know.

A net that has learned wrong labels by heart agrees with them, so its own outputs say nothing, and its features lean towards
what was given. The labels of the *others*, seen through the features, still tell: ridge regression with the sample left out,
and nearest neighbours. The states that tell most lie before the net began to learn labels by heart, which shows without
knowing which are wrong, in two ways:

    gap        the net agrees with the given labels more often than the left-out predictions from its own features do
    learned    it has come to agree with those labels that the left-out predictions of its first states doubted most; a net
               that learns classes goes on disagreeing with them

Both weigh the states. A state before the first step knows nothing by heart, and little else.

Predictions from others tell a wrong label from a right one, and not well two labels that are both unlikely: one of a class
that looks alike, and one of a class that is nothing like the sample. The margins of the net do, wherever it knows little by
heart, so they take part in the order of the suspects, and not in their probabilities.

``WEIGHTS`` were found on other data than those of the benchmark's tables, wrong labels in digits and Gaussian blobs, by
``benchmarks/actions/fusion_weights.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from diffin.actions.clean.latent import latent_classes
from diffin.actions.clean.neighbours import neighbour_shares
from diffin.actions.clean.single import own_margin
from diffin.actions.clean.smoothing import LeaveOneOut, Reference
from diffin.actions.clean.twins import shared, twins
from diffin.signals.signals import Bools, Floats, Singles
from diffin.sources import Indices

WEIGHTS = {"latent": 0.60, "neighbours": 0.93, "given": 0.08, "given_unlearned": 0.60}
"""Of log probabilities, and of being the given class: always, and as far as the final state learned nothing by heart."""

_MARGIN_WEIGHT = 1.0
_LEAST_HONEST = 0.5
"""As how honest any net is taken for its margins to count: their mean goes over early states, too."""
_LARGEST_MARGIN = 12.0

_GAP = 0.03
_EARLY = 2
_DOUBTED = 10
_HONEST, _LEARNED = 0.05, 0.1
_UNTRAINED = 0.3
_LEAST_WEIGHT = 0.1
_MOST_STATES = 6
_FLOORS = {"latent": 1e-4, "neighbours": 1e-2}


@dataclass(frozen=True)
class Fused:
    """What the evidence says together.

    Attributes:
        posterior: Float64[ndarray, "N C"], probability of each class to be the correct one.
        doubt: Float64[ndarray, "N"], by what suspects are ordered, largest first: log odds against the given class, with the
            margins of the net.
        left_out: Float64[ndarray, "N C"], what the other samples predict, before any label was doubted.
        neighbours: Float64[ndarray, "N C"], shares of the classes among the nearest neighbours.
        confusion: Float64[ndarray, "C C"], probability of each given class (column) for each correct one (row).
        state_weights: by steps taken, how much each state counted; 0 for one that was left out.
    """

    posterior: Floats
    doubt: Floats
    left_out: Floats
    neighbours: Floats
    confusion: Floats
    state_weights: Mapping[int, float]


@dataclass(frozen=True)
class Evidence:
    """The parts of the fusion, each as log probabilities or as a switch: what the weights multiply.

    Attributes:
        columns: Float64[ndarray, "N C 4"], in the order of ``WEIGHTS``.
        margins: Float64[ndarray, "N"], of the given class at the states of the net, as far as they count.
        left_out: as in :class:`Fused`.
        neighbours: as in :class:`Fused`.
        given: Float64[ndarray, "N C"], one-hot.
        state_weights: as in :class:`Fused`.
    """

    columns: Floats
    margins: Floats
    left_out: Floats
    neighbours: Floats
    given: Floats
    state_weights: Mapping[int, float]


def gather(
    hidden: Mapping[int, Singles],
    margins: Floats,
    labels: Indices,
    classes: int,
    reference: Mapping[int, Reference] | None = None,
) -> Evidence:
    """Take the evidence of a training.

    Args:
        hidden: features by steps taken, ascending: Float32[ndarray, "N d"]; with the state before the first step, or without.
        margins: Float64[ndarray, "N m"], logit of the given class less the largest other, at each state but that before the
            first step.
        labels: Int64[ndarray, "N"], given.
        classes: C.
        reference: samples known to be right, by steps taken.
    """
    given = np.eye(classes)[labels]
    steps = list(hidden)
    known = reference or {}
    pairs = twins(hidden[steps[0]], labels)
    first = [LeaveOneOut(hidden[step], given, pairs=pairs)(given) for step in steps]
    weights = _state_weights(first, margins > 0, labels)
    kept = np.flatnonzero(weights > min(_LEAST_WEIGHT, 0.5 * weights.max()))
    if len(kept) > _MOST_STATES:
        kept = kept[np.unique(np.linspace(0, len(kept) - 1, _MOST_STATES).round().astype(np.int64))]
    smoothers = [LeaveOneOut(hidden[steps[k]], given, known.get(steps[k]), pairs) for k in kept]
    latent = latent_classes(smoothers, weights[kept], labels, classes, pairs)
    shares = weights[kept] / weights[kept].sum()
    neighbours = np.tensordot(
        shares, np.stack([neighbour_shares(hidden[steps[k]], labels, classes, pairs) for k in kept]), axes=1
    )
    neighbours = shared(neighbours, pairs)
    said = given.copy()
    said[pairs] = given[pairs].sum(axis=1, keepdims=True)
    columns = np.stack(
        [
            np.log(np.maximum(latent.posterior, _FLOORS["latent"])),
            np.log(np.maximum(neighbours, _FLOORS["neighbours"])),
            said,
            weights[-1] * said,
        ],
        axis=2,
    )
    left_out = np.tensordot(shares, np.stack([first[k] for k in kept]), axes=1)
    counted = dict.fromkeys(steps, 0.0)
    counted.update({steps[k]: float(share) for k, share in zip(kept, shares, strict=True)})
    mean = np.clip(margins, -_LARGEST_MARGIN, _LARGEST_MARGIN).mean(axis=1, dtype=np.float64)
    return Evidence(columns, max(weights[-1], _LEAST_HONEST) * mean, left_out, neighbours, given, counted)


def _state_weights(left_out: Sequence[Floats], correct: Bools, labels: Indices) -> Floats:
    """How far each state can be trusted, from 0 to 1, the one before the first step included: Float64[ndarray, "states"]."""
    untrained = len(left_out) - correct.shape[1]
    agree = np.array([(predicted.argmax(axis=1) == labels).mean() for predicted in left_out[untrained:]])
    gap = np.maximum(correct.mean(axis=0) - agree, 0)
    early = np.sum(left_out[untrained : untrained + _EARLY], axis=0)
    doubted = np.argsort(own_margin(early, labels), kind="stable")[: -(-len(labels) // _DOUBTED)]
    learned = np.maximum(correct[doubted].mean(axis=0) - _HONEST, 0)
    trust = np.exp(-gap / _GAP - learned / _LEARNED)
    return np.concatenate([np.full(untrained, _UNTRAINED * trust.max()), trust])


def fuse(evidence: Evidence) -> Fused:
    """Weigh the evidence."""
    logits = evidence.columns @ np.array(list(WEIGHTS.values()))
    own = evidence.given > 0
    against = np.logaddexp.reduce(np.where(own, -np.inf, logits), axis=1) - logits[own]
    doubt = against - _MARGIN_WEIGHT * evidence.margins
    posterior = np.exp(logits - logits.max(axis=1, keepdims=True))
    posterior /= posterior.sum(axis=1, keepdims=True)
    counts = posterior.T @ evidence.given
    confusion = counts / np.maximum(counts.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    return Fused(posterior, doubt, evidence.left_out, evidence.neighbours, confusion, evidence.state_weights)
