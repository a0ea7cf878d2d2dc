"""A ground truth: what training on samples did, found by training again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import numpy.typing as npt

from diffin import checked, reading
from diffin.errors import EvaluationError
from diffin.files import read_json, write_atomically, write_json
from diffin.sources import Indices

Floats = npt.NDArray[np.float64]
Kind = Literal["loo", "groups", "lds", "expected"]

MANIFEST = "truth.json"
_ARRAYS = "truth.npz"
_FORMAT = 1


@dataclass(frozen=True)
class Truth:
    """The influence of G groups of samples on the query loss: negative helps, positive harms.

    There are two truths, and they answer different questions. That of the *own run* keeps initial parameters, order and
    batches; the *expected* one is the mean over K other orders of the data.

    Attributes:
        kind: ``"loo"``, samples left out one by one; ``"groups"``, groups left out; ``"lds"``, subsets kept;
            ``"expected"``, the derivative with respect to the weight of every sample, in other orders.
        groups: the samples of each group, Int64[ndarray, "size"]; for ``"lds"``, those that were kept.
        replicas: Float64[ndarray, "K G"], one row an order. The query loss with the group minus that without it, over how
            much its weight was lowered; for ``"lds"``, that of the subset minus that of all samples. NaN where a training
            came to a loss that is not finite.
        order_seeds: what drew each order; empty for the recorded one (K = 1).
        weight: what the losses of the samples left out were multiplied with: 0 for removal.
        kept_weight: what those of the others were multiplied with.
        per_query: Float64[ndarray, "Q G"], the same on single samples of the query, mean over the orders; ``None`` if not
            asked.
        queries: Int64[ndarray, "Q"], their positions in the query; ``None`` if not asked.
        metadata: sizes, seconds, the identity of run and data, how it was computed.
    """

    kind: Kind
    groups: tuple[Indices, ...]
    replicas: Floats
    order_seeds: tuple[int, ...] = ()
    weight: float = 0.0
    kept_weight: float = 1.0
    per_query: Floats | None = None
    queries: Indices | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def influence(self) -> Floats:
        """Float64[ndarray, "G"], mean over the orders; negative helps, positive harms."""
        mean: Floats = self.replicas.mean(axis=0)
        return mean

    def predicted(self, scores: Floats) -> Floats:
        """What scores of samples say of the groups: Float64[ndarray, "... G"], to be compared with :attr:`influence`.

        Influence is taken to add up. A subset is predicted by the change of every weight times the score of its sample,
        which orders subsets as the sum over the samples that were kept does. Samples without a score (NaN) are left out of
        sums; a group in which none has one is NaN.

        Args:
            scores: Float64[ndarray, "... N"], of all samples of the training set.

        Raises:
            EvaluationError: there are not enough scores.
        """
        needed = self.metadata.get("dataset_size", 1 + max((int(g.max()) for g in self.groups if len(g)), default=-1))
        if scores.shape[-1] != needed:
            raise EvaluationError(
                f"{scores.shape[-1]} scores are given and the training set of this truth has {needed} samples; pass one "
                "score for every sample, in its order"
            )
        known, filled = np.isfinite(scores), np.nan_to_num(scores, nan=0.0, posinf=0.0, neginf=0.0)
        sums = np.stack([filled[..., group].sum(axis=-1) for group in self.groups], axis=-1)
        if self.kind == "lds":
            total = filled.sum(axis=-1, keepdims=True)
            sums = (self.kept_weight - self.weight) * sums - (1 - self.weight) * total
        some = np.stack([known[..., group].any(axis=-1) for group in self.groups], axis=-1)
        predicted: Floats = np.where(some, sums, np.nan)
        return predicted

    def sentence(self) -> str:
        """What was done, for a person."""
        count = len(self.groups)
        lowered = "without" if self.weight == 0 else f"with weight {self.weight:g} for"
        done = {
            "loo": f"trained again {lowered} each of {count:,} samples",
            "groups": f"trained again {lowered} each of {count:,} groups of samples",
            "lds": f"trained again on each of {count:,} subsets of the samples",
            "expected": f"the exact derivative for the weight of each of {count:,} samples",
        }[self.kind]
        if not self.order_seeds:
            return f"This run: {done}, from the same initial parameters, in the recorded order and batches."
        number = len(self.order_seeds)
        orders = f"{number} {'orders' if number > 1 else 'order'}"
        return f"Expected over {orders} of the data: {done}, from the same initial parameters."

    def save(self, folder: str | Path) -> None:
        """Write ``truth.npz`` and, last, ``truth.json``."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, npt.NDArray[Any]] = {
            "replicas": self.replicas,
            "members": np.concatenate([*self.groups, np.empty(0, dtype=np.int64)]),
            "sizes": np.array([len(group) for group in self.groups], dtype=np.int64),
        }
        if self.per_query is not None and self.queries is not None:
            arrays |= {"per_query": self.per_query, "queries": self.queries}
        write_arrays(folder / _ARRAYS, arrays)
        known = {
            "format": _FORMAT,
            "kind": self.kind,
            "order_seeds": list(self.order_seeds),
            "weight": self.weight,
            "kept_weight": self.kept_weight,
            "metadata": dict(self.metadata),
        }
        write_json(folder / MANIFEST, known)

    @classmethod
    def open(cls, folder: str | Path) -> Truth:
        """Read what :meth:`save` wrote.

        Raises:
            EvaluationError: there is no truth, or it is damaged.
        """
        folder = Path(folder)
        try:
            known = read_json(folder / MANIFEST)
            arrays = read_arrays(folder / _ARRAYS)
            kind = checked.text(known, "kind")
            if known.get("format") != _FORMAT or kind not in get_args(Kind):
                raise ValueError(f"format {known.get('format')}, kind {kind!r}")
            seeds = checked.each(known, "order_seeds", checked.whole)
            groups = _groups(arrays)
            _check_shapes(arrays, (max(1, len(seeds)), len(groups)))
            return cls(
                kind=cast(Kind, kind),
                groups=groups,
                replicas=arrays["replicas"],
                order_seeds=seeds,
                weight=checked.real(known, "weight"),
                kept_weight=checked.real(known, "kept_weight"),
                per_query=arrays.get("per_query"),
                queries=arrays.get("queries"),
                metadata=_metadata(checked.mapping(known, "metadata")),
            )
        except FileNotFoundError as error:
            raise EvaluationError(
                f"{folder} holds no complete truth ({error.filename} is missing); compute it with the functions of "
                "diffin.evaluation, with output= this folder"
            ) from None
        except (OSError, ValueError) as error:
            raise EvaluationError(f"the truth in {folder} is damaged ({error}); compute it again") from error


def write_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """An ``.npz`` file that is whole or absent."""
    save: Callable[..., None] = np.savez
    with write_atomically(path) as part, part.open("wb") as file:
        save(file, **arrays)


def read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """What :func:`write_arrays` wrote.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged.
    """
    return reading.arrays(path)


def _groups(arrays: Mapping[str, npt.NDArray[Any]]) -> tuple[Indices, ...]:
    """The members of each group."""
    members, sizes = (arrays.get(name, np.empty(0)) for name in ("members", "sizes"))
    for name, found in (("members", members), ("sizes", sizes)):
        if found.ndim != 1 or found.dtype.kind != "i" or (len(found) and found.min() < 0):
            raise ValueError(f"{name} holds no whole numbers from 0 on")
    # Each before all of them: their sum might be too large to be seen.
    if (sizes > len(members)).any() or sizes.sum() != len(members):
        raise ValueError(f"its groups are not of {len(members)} members in all")
    return tuple(np.split(members, np.cumsum(sizes)[:-1])) if len(sizes) else ()


def _check_shapes(arrays: Mapping[str, npt.NDArray[Any]], shape: tuple[int, int]) -> None:
    """Refuse arrays that are not of K orders (and Q queries) and G groups."""
    replicas, per_query, queries = (arrays.get(name) for name in ("replicas", "per_query", "queries"))
    if replicas is None or replicas.dtype != np.float64 or replicas.shape != shape:
        raise ValueError(f"its replicas are not of {shape[0]} orders and {shape[1]} groups")
    if (per_query is None) != (queries is None):
        raise ValueError("its single queries have no positions, or the other way round")
    if queries is not None and (queries.ndim != 1 or queries.dtype.kind != "i"):
        raise ValueError("its queries are no positions")
    wanted = None if queries is None else (len(queries), shape[1])
    if per_query is not None and (per_query.dtype != np.float64 or per_query.shape != wanted):
        raise ValueError(f"it is not of {wanted} queries and groups")


def _metadata(content: dict[str, Any]) -> dict[str, Any]:
    checked.whole({"dataset_size": 0, **content}, "dataset_size")
    checked.mapping({"identity": {}, **content}, "identity")
    return content


def as_indices(samples: Sequence[int] | Indices, length: int, argument: str) -> Indices:
    """Indices as an array, in the order given.

    Raises:
        EvaluationError: they are no positions in a data set of that length, or one comes twice.
    """
    found = np.asarray(samples)
    if found.ndim != 1 or not len(found) or found.dtype.kind not in "iu":
        raise EvaluationError(f"{argument}: pass at least one index, all of them whole numbers in one dimension")
    if found.min() < 0 or found.max() >= length:
        raise EvaluationError(
            f"{argument}: indices go from 0 to {length - 1}, and {found.min()} to {found.max()} are given"
        )
    if len(np.unique(found)) < len(found):
        raise EvaluationError(f"{argument}: an index comes twice; pass each once")
    return found.astype(np.int64)
