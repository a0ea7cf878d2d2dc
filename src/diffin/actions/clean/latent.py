"""The correct class as a latent variable: which given class each correct one turns into, and which one each sample has.

Alternates between three steps. (1) Predict the class of every sample from the others' (:mod:`.smoothing`), sharpened. (2) Of
each class, take the samples that are surest to be of it, and count what they were given: an estimate T[correct, given] of the
confusion that samples near the border of a class do not blur (anchors; Patrini et al. 2017). (3) Weigh the prediction by T
(Bayes), and take the result for the labels of the next round.

A class that is like another would pass for noise, and each round would make it so more: what a pair of classes is confused
above the common level of its row counts only from ``_EXCESS`` on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffin.actions.clean.smoothing import LeaveOneOut
from diffin.actions.clean.twins import NO_PAIRS, Pairs, shared
from diffin.signals.signals import Floats
from diffin.sources import Indices

_ROUNDS = 4
_SHARPNESS = 2.0
_ANCHORS = 0.2
_FEWEST_ANCHORS = 5
_OWN_COUNT = 2.0
_OTHER_COUNT = 0.1
_EXCESS = 0.05
_LEAST_CONFUSION = 0.005
_MOST_CONFUSION = 0.9
_SMALLEST = 1e-2


@dataclass(frozen=True)
class Latent:
    """What was found.

    Attributes:
        posterior: Float64[ndarray, "N C"], probability of each class to be the correct one.
        confusion: Float64[ndarray, "C C"], probability of each given class (column) for each correct one (row).
    """

    posterior: Floats
    confusion: Floats


def latent_classes(
    smoothers: Sequence[LeaveOneOut], weights: Floats, labels: Indices, classes: int, pairs: Pairs = NO_PAIRS
) -> Latent:
    """Estimate correct classes and confusion.

    Args:
        smoothers: predictions from the features of several states.
        weights: Float64[ndarray, "states"], of each.
        labels: Int64[ndarray, "N"], given.
        classes: C.
        pairs: near copies with different labels, which have the same correct class.
    """
    given = np.eye(classes)[labels]
    posterior, confusion = given, np.eye(classes)
    for _ in range(_ROUNDS):
        predicted = np.tensordot(weights / weights.sum(), np.stack([smooth(posterior) for smooth in smoothers]), axes=1)
        predicted = shared(predicted, pairs)
        sharp = np.maximum(predicted, _SMALLEST) ** _SHARPNESS
        sharp /= sharp.sum(axis=1, keepdims=True)
        confusion = _without_likeness(_counted(sharp, given))
        posterior = sharp * confusion[:, labels].T
        posterior[pairs] *= confusion[:, labels[pairs[:, ::-1]]].transpose(1, 2, 0)
        posterior /= posterior.sum(axis=1, keepdims=True)
    return Latent(posterior, confusion)


def _counted(predicted: Floats, given: Floats) -> Floats:
    """What the anchors of each class were given, as probabilities: Float64[ndarray, "C C"]."""
    size, classes = given.shape
    likeliest = predicted.argmax(axis=1)
    counts = np.empty((classes, classes))
    for number in range(classes):
        members = np.flatnonzero(likeliest == number)
        if not len(members):
            members = np.argsort(-predicted[:, number], kind="stable")[: max(_FEWEST_ANCHORS, size // classes // 10)]
        wanted = max(_FEWEST_ANCHORS, int(len(members) * _ANCHORS))
        anchors = members[np.argsort(-predicted[members, number], kind="stable")[:wanted]]
        counts[number] = given[anchors].sum(axis=0) + _OTHER_COUNT * wanted / classes
        counts[number, number] += _OWN_COUNT
    rows: Floats = counts / counts.sum(axis=1, keepdims=True)
    return rows


def _without_likeness(confusion: Floats) -> Floats:
    """Confusions as common as the others of their row, but for those that stand out by ``_EXCESS``."""
    off = ~np.eye(len(confusion), dtype=bool)
    level = np.array([np.median(row[others]) for row, others in zip(confusion, off, strict=True)])[:, None]
    excess = confusion - level
    level = np.maximum(level, _LEAST_CONFUSION)
    found = np.where(off, level + np.where(excess > _EXCESS, excess, 0.0), 0.0)
    total = found.sum(axis=1, keepdims=True)
    found *= np.minimum(1.0, _MOST_CONFUSION / total)
    np.fill_diagonal(found, 1 - found.sum(axis=1))
    return found
