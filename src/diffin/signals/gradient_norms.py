"""Norms of gradients, out of what first-order self-influence has found: GraNd (Paul et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diffin.signals.signals import Floats


def gradient_norms(terms: Floats, rates: Sequence[float] | None = None) -> Floats:
    """The norm of every sample's gradient at every checkpoint, up to one factor for all. Float64[ndarray, "N m"].

    A term of TracIn is minus the squared norm, times the learning rate and a constant.

    Args:
        terms: Float64[ndarray, "N m"], of self-influence by :class:`diffin.TracIn`.
        rates: learning rates of the checkpoints, to divide by; one of 0 is left alone. ``None`` for norms in the steps that
            the optimizer takes, which are longer where the rate is.
    """
    squares = np.maximum(-terms, 0)
    if rates is not None:
        squares /= np.array([rate if rate > 0 else 1.0 for rate in rates])
    norms: Floats = np.sqrt(squares)
    return norms
