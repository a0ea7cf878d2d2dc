"""What the two examples print of their scores."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from corpus import LABELS, Review


def show(train: list[Review], influence: npt.NDArray[np.float64], loss: npt.NDArray[np.float64], most: int = 8) -> None:
    """Print the most harmful reviews, and how many of those at the top have a flipped label.

    Args:
        train: the training set.
        influence: Float64[ndarray, "N"], positive harms.
        loss: Float64[ndarray, "N"], the mean loss over the measured states, a cheap signal to compare with.
        most: how many reviews to print.
    """
    print(
        f"\nThe {most} most harmful of {len(train)} reviews, by what training on them did to the loss of the query:\n"
    )
    for index in np.argsort(-influence)[:most]:
        review = train[index]
        flag = "  <- label was flipped" if review.flipped else ""
        print(f"  {influence[index]:+.5f}  called {LABELS[review.label]}{flag}\n            {review.text[:110]}")
    flipped = np.array([review.flipped for review in train])
    print(f"\nFlipped labels among the top (all: {flipped.mean():.0%}):")
    for share in (0.05, 0.1):
        top = round(share * len(train))
        by_influence, by_loss = (flipped[np.argsort(-signal)[:top]].mean() for signal in (influence, loss))
        print(f"  top {share:.0%}: {by_influence:.0%} by influence, {by_loss:.0%} by loss")
