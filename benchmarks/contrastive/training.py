"""The pool of the pruning benchmark, what it is asked about, how it is trained on, and how well that retrieves.

The pool is what a crawl would give: emoji of one vendor, and clip art as it comes, a fifth of which has one and the same
title. The query and the test set are clean and of two kinds: emoji as another vendor draws them, and clip art with titles
that come once. No emoji and no title is in both the query and the test set. All emoji are in the pool as the first vendor
draws them, and no title of the clip art is.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

_HERE = Path(__file__).resolve().parent
sys.path[1:1] = [str(_HERE), str(_HERE.parents[0])]

from models import clip, tokens  # noqa: E402

from data import Pairs, pairs  # noqa: E402
from diffin.tasks.contrastive import Contrastive, TwoTowers  # noqa: E402
from trained_pools import Indices, TrainedPool, Training  # noqa: E402

Bools = npt.NDArray[np.bool_]

CUTOFFS = (1, 5, 10)
_TEST_CLIPART = 700
_EVALUATED_AT_ONCE = 512


@dataclass(frozen=True)
class Recipe:
    """How every training goes, whatever is trained on.

    Attributes:
        steps: of the optimizer.
        group: pairs in a batch; each has all others of it as negatives.
        learning_rate: of AdamW, after the warm-up; it falls to zero along a cosine.
        epsilon: of AdamW. The gradients of rare words are near nothing for most of the time, and with the usual 1e-8 each
            that comes makes a step of full length; with this one, retrieval was better.
        warm_up: steps over which the learning rate rises.
        query: emoji, and as many pieces of clip art, that are asked about.
        checkpoints: that are recorded.
    """

    steps: int = 600
    group: int = 128
    learning_rate: float = 8e-3
    epsilon: float = 1e-4
    weight_decay: float = 0.1
    warm_up: int = 30
    query: int = 512
    checkpoints: int = 12


class Pool(TrainedPool[TwoTowers]):
    """Pairs to select from, the query and the test sets, and the training.

    Args:
        seed: of the split, of what is mismatched and, with a number of its own, every training.
        recipe: how to train.
        mismatched: share of the pool whose captions change hands.

    Attributes:
        train: (pictures UInt8[Tensor, "3 64 64"], words Int64[Tensor, "24"]).
        query: the same; the emoji first.
        tests: the same, by name.
        sources: Int8[ndarray, "N"], as in :class:`data.Pairs`, of the pool.
        wrong: Bool[ndarray, "N"], whether the caption of a pair is another's.
    """

    def __init__(self, seed: int, recipe: Recipe | None = None, mismatched: float = 0.0) -> None:
        self.seed, self.recipe = seed, recipe or Recipe()
        self.steps, self.checkpoints = self.recipe.steps, self.recipe.checkpoints
        everything = pairs()
        parts = _split(everything, seed, self.recipe.query)
        self.positions, self.sources = parts["train"], everything.sources[parts["train"]]
        given = _swapped(everything, parts["train"], mismatched, seed)
        self.wrong: Bools = everything.captions[given] != everything.captions[parts["train"]]
        self.captions = everything.captions[given]
        self.train = _dataset(parts["train"], given)
        self.query = _dataset(np.concatenate([parts["query emoji"], parts["query clipart"]]))
        self.tests = {name: _dataset(parts[name]) for name in ("emoji", "clipart")}

    def task(self) -> Contrastive:
        """With a freshly drawn model."""
        return Contrastive(clip(), group_size=self.recipe.group)

    def training(self, indices: Indices, seed: int) -> Training[TwoTowers]:
        """By full batches in each of which no pair comes twice."""
        recipe = self.recipe
        torch.manual_seed(seed)
        task = self.task()
        model = task.model
        optimizer = torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad],
            lr=recipe.learning_rate,
            eps=recipe.epsilon,
            weight_decay=recipe.weight_decay,
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, _rate(recipe))
        order = _Order(indices, recipe.group, seed)
        return Training(model, optimizer, scheduler, lambda batch: task.losses(self.train[batch]).mean(), order.next)

    def retrieval(self, model: TwoTowers) -> dict[str, dict[str, float]]:
        """R@1, R@5 and R@10 on each test set, and their mean over both."""
        found = {name: recall(*embedded(model, test)) for name, test in self.tests.items()}
        found["mean"] = {key: float(np.mean([one[key] for one in found.values()])) for key in found["emoji"]}
        return found


def _rate(recipe: Recipe) -> Callable[[int], float]:
    def factor(step: int) -> float:
        if step < recipe.warm_up:
            return (step + 1) / recipe.warm_up
        done = (step - recipe.warm_up) / max(1, recipe.steps - recipe.warm_up)
        return 0.5 * (1 + float(np.cos(np.pi * min(1.0, done))))

    return factor


class _Order:
    """Batches of a shuffled set; its tail begins the next pass, so that every batch is full."""

    def __init__(self, indices: Indices, size: int, seed: int) -> None:
        self._indices, self._size = indices, min(size, len(indices))
        self._generator = np.random.default_rng(seed)
        self._left: Indices = np.zeros(0, dtype=np.int64)

    def next(self) -> Tensor:
        """Int64[Tensor, "size"]; nothing comes twice."""
        if len(self._left) < self._size:
            fresh = self._generator.permutation(self._indices)
            late = np.isin(fresh, self._left)
            self._left = np.concatenate([self._left, fresh[~late], fresh[late]])
        batch, self._left = self._left[: self._size], self._left[self._size :]
        return torch.from_numpy(batch)


@torch.inference_mode()
def embedded(model: TwoTowers, dataset: TensorDataset) -> tuple[Tensor, Tensor]:
    """The features of all pictures and captions, Float[Tensor, "N 128"] each."""
    images, words = dataset.tensors
    rows = [model(images[part], words[part])[:2] for part in torch.arange(len(images)).split(_EVALUATED_AT_ONCE)]
    return torch.cat([row[0] for row in rows]), torch.cat([row[1] for row in rows])


def recall(images: Tensor, captions: Tensor) -> dict[str, float]:
    """R@1, R@5 and R@10: how often the own caption is among the first, and the own picture; the mean of both."""
    similar = (images @ captions.T).double()
    own = similar.diagonal()
    before = [(similar > own[:, None]).sum(dim=1), (similar > own[None, :]).sum(dim=0)]
    return {f"R@{k}": float(np.mean([(rank < k).double().mean().item() for rank in before])) for k in CUTOFFS}


def _split(everything: Pairs, seed: int, query: int) -> dict[str, Indices]:
    generator = np.random.default_rng([seed, 1])
    google, twitter, clipart = (everything.of(source) for source in ("google", "twitter", "clipart"))
    emoji = generator.permutation(google)
    asked, tested = emoji[:query], emoji[query:]
    alone = generator.permutation(clipart[_once(everything, clipart)])
    asked_art, tested_art = alone[:query], alone[query : query + _TEST_CLIPART]
    trained = np.concatenate(
        [
            twitter,
            np.setdiff1d(clipart, np.concatenate([asked_art, tested_art])),
        ]
    )
    trained = generator.permutation(trained)
    return {"train": trained, "query emoji": asked, "query clipart": asked_art, "emoji": tested, "clipart": tested_art}


def _once(everything: Pairs, clipart: Indices) -> Bools:
    """Which pieces of clip art have a title, a caption and a picture that no other has."""
    once = np.ones(len(clipart), dtype=np.bool_)
    looks = [everything.images[position].tobytes() for position in clipart]
    for key in (everything.names[clipart].tolist(), everything.captions[clipart].tolist(), looks):
        _, place, count = np.unique(np.array([hash(one) for one in key]), return_inverse=True, return_counts=True)
        once &= count[place] == 1
    return once


def _swapped(everything: Pairs, positions: Indices, share: float, seed: int) -> Indices:
    """Whose caption each pair has: some change hands in a circle, among those of the same source."""
    generator = np.random.default_rng([seed, 2])
    given = positions.copy()
    for source in np.unique(everything.sources[positions]):
        inside = generator.permutation(np.flatnonzero(everything.sources[positions] == source))
        chosen = inside[: round(share * len(inside))]
        given[chosen] = positions[np.roll(chosen, 1)]
    return given


@cache
def _tensors() -> tuple[Tensor, Tensor]:
    everything = pairs()
    images = torch.from_numpy(everything.images).permute(0, 3, 1, 2).contiguous()
    return images, torch.from_numpy(tokens(everything.captions.tolist()))


def _dataset(positions: Indices, captions: Indices | None = None) -> TensorDataset:
    images, words = _tensors()
    return TensorDataset(images[positions], words[positions if captions is None else captions])
