"""The questions of a pairwise attribution: single samples, or groups of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from diffin.batches import Batch, digest
from diffin.derivatives.gradient import SampleSet
from diffin.derivatives.per_sample import PerSampleGradients
from diffin.errors import DatasetError, DerivativeError
from diffin.sources import Indices, Source
from diffin.task import PerSampleLoss
from diffin.vectors import Vector


@dataclass(frozen=True)
class Queries:
    """Q questions, each about the mean loss of some samples.

    Attributes:
        source: the query set.
        members: of each question, the positions of its samples in the query set, ascending.
        labels: Int64[ndarray, "Q"], the position of the sample that is asked about, or the label of the group.
        grouped: whether the questions are groups.
        batch_size: samples per gradient pass.
    """

    source: Source
    members: tuple[Indices, ...]
    labels: Indices
    grouped: bool
    batch_size: int

    def __len__(self) -> int:
        """Q."""
        return len(self.members)

    def part(self, start: int, stop: int) -> Queries:
        """The questions ``start`` to ``stop - 1``."""
        return replace(self, members=self.members[start:stop], labels=self.labels[start:stop])

    def sets(self) -> list[SampleSet]:
        """The samples of each question."""

        def of(source: Source, name: str) -> SampleSet:
            return SampleSet(lambda: (batch for _, batch in source.every(self.batch_size)), name)

        return [
            of(self.source.select(members), self._named(label))
            for members, label in zip(self.members, self.labels.tolist(), strict=True)
        ]

    def gradients(self, loss: PerSampleLoss) -> Vector:
        """The gradient of the mean loss of each question, stacked: Float[Tensor, "Q *shape"] by parameter name.

        Raises:
            DerivativeError: the loss of a sample is not finite.
        """
        chosen = np.sort(np.concatenate(self.members))
        asked = np.zeros(int(chosen[-1]) + 1, dtype=np.int64)
        for number, members in enumerate(self.members):
            asked[members] = number
        shares = torch.tensor([1 / len(members) for members in self.members], dtype=torch.float64)
        total = {
            name: t.new_zeros((len(self), *t.shape), dtype=torch.promote_types(t.dtype, torch.float32))
            for name, t in loss.parameters.items()
        }
        gradients = PerSampleGradients(loss)
        for indices, batch in self.source.select(chosen).every(self.batch_size):
            numbers = torch.from_numpy(asked[indices])
            losses, rows = gradients.rows(loss.to_device(batch))
            bad = torch.nonzero(~torch.isfinite(losses)).flatten()
            if len(bad):
                raise DerivativeError(
                    f"the loss of query sample {indices[int(bad[0])]} is not finite; remove it from the query set, or clamp "
                    "what overflows in Task.losses"
                )
            for name, row in rows:
                share = shares[numbers].to(row).view(-1, *(1 for _ in row.shape[1:]))
                total[name].index_add_(0, numbers.to(row.device), (row * share).to(total[name].dtype))
        return total

    def digest(self) -> str:
        """Identifies the questions by the bytes of their samples."""
        total = hashlib.sha256()
        for _, batch in self._read():
            total.update(digest(batch).encode())
        for members in self.members:
            total.update(members.tobytes() + b";")
        total.update(self.labels.tobytes())
        return total.hexdigest()[:16]

    def _read(self) -> Iterator[tuple[Indices, Batch]]:
        return self.source.select(np.sort(np.concatenate(self.members))).every(self.batch_size)

    def _named(self, label: int) -> str:
        return f"query group {label}" if self.grouped else f"query sample {label}"


def ask(source: Source, groups: Sequence[int] | Any | None, batch_size: int) -> Queries:
    """One question for every sample of the query set, or for every group of them in the order of their labels.

    Args:
        source: the query set.
        groups: Int[ndarray, "Q"], a label for every sample; ``None`` for a question each.
        batch_size: samples per gradient pass.

    Raises:
        DatasetError: there is not one whole number for each sample.
    """
    length = source.length
    if length is None:
        length = sum(len(indices) for indices, _ in source.batches(batch_size))
    positions = np.arange(length, dtype=np.int64)
    if groups is None:
        return Queries(source, tuple(positions[:, None]), positions, False, batch_size)
    labels = np.asarray(groups)
    if labels.shape != (length,) or labels.dtype.kind not in "iu":
        raise DatasetError(
            f"groups= holds {labels.dtype} of shape {labels.shape}; pass one whole number for each of the {length} query "
            "samples, e.g. its class"
        )
    kinds = np.unique(labels).astype(np.int64)
    return Queries(source, tuple(np.flatnonzero(labels == kind) for kind in kinds), kinds, True, batch_size)
