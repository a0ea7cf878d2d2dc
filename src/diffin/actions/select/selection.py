"""What to keep of a training set, for one share or several, and what it cost to find out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Subset

from diffin import checked, reading
from diffin.errors import DiffinError, ScoringError
from diffin.files import read_json, write_atomically, write_json
from diffin.scoring.columns import Floats
from diffin.sources import Indices

MANIFEST, TABLE = "selection.json", "selection.parquet"


@dataclass(frozen=True)
class Cost:
    """What a selection cost.

    Attributes:
        trainings: how many, that of the trajectory it was given included where it was looked at.
        training_seconds: of the trainings that the selection did itself.
        scoring_seconds: of everything else.
    """

    trainings: int = 0
    training_seconds: float = 0.0
    scoring_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.training_seconds + self.scoring_seconds

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.trainings + other.trainings,
            self.training_seconds + other.training_seconds,
            self.scoring_seconds + other.scoring_seconds,
        )


@dataclass(frozen=True, eq=False)
class Kept:
    """What is kept at one share.

    Attributes:
        fraction: the share that was asked for.
        indices: Int64[ndarray, "n"], positions in the training set, ascending.
        weights: Float64[ndarray, "n"], mean one: what to multiply the losses with so that classes count as in all the data.
    """

    fraction: float
    indices: Indices
    weights: Floats


@dataclass(frozen=True, eq=False)
class Selection:
    """What to keep of N samples. Made by :func:`diffin.select`, or opened with :meth:`open`.

    Attributes:
        method: how it was chosen.
        size: N.
        kept: by share, ascending.
        cost: of all of it.
        details: JSON-able: settings, seed and, where the selection was iterated, the ``held_out_loss`` of every round, by
            which the best was chosen: on the query or, without one, on the training set as far as labels are believed.
    """

    method: str
    size: int
    kept: tuple[Kept, ...]
    cost: Cost
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def fractions(self) -> tuple[float, ...]:
        """The shares that were asked for, ascending."""
        return tuple(kept.fraction for kept in self.kept)

    def at(self, fraction: float) -> Kept:
        """What is kept at a share.

        Raises:
            DiffinError: that share was not asked for.
        """
        for kept in self.kept:
            if abs(kept.fraction - fraction) < 1e-9:
                return kept
        raise DiffinError(f"fraction={fraction}: the selection holds {', '.join(map(str, self.fractions))}")

    def subset(self, dataset: Any, fraction: float) -> Subset[Any]:
        """The samples of a map-style dataset that are kept at a share.

        Raises:
            DiffinError: that share was not asked for, or the dataset is of another size.
        """
        if len(dataset) != self.size:
            raise DiffinError(f"dataset holds {len(dataset)} samples; the selection is of {self.size}")
        return Subset(dataset, self.at(fraction).indices.tolist())

    def save(self, path: str | Path) -> Path:
        """Write it into a folder, made if absent, from which :meth:`open` reads it; what is there is replaced.

        ``selection.parquet`` has a row for every sample: its ``index``, and for each share ``weight_<share>``, null where it
        is left out.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        columns: dict[str, Any] = {"index": np.arange(self.size)}
        for kept in self.kept:
            weights = np.full(self.size, np.nan)
            weights[kept.indices] = kept.weights
            columns[_column(kept.fraction)] = pa.array(weights, mask=np.isnan(weights))
        with write_atomically(folder / TABLE) as part:
            pq.write_table(pa.table(columns), part)
        manifest = {
            "method": self.method,
            "size": self.size,
            "fractions": list(self.fractions),
            "cost": vars(self.cost),
            "details": self.details,
        }
        # Last, so that a folder with a manifest is a folder with a selection.
        write_json(folder / MANIFEST, manifest)
        return folder

    @classmethod
    def open(cls, path: str | Path) -> Selection:
        """Open a selection from a folder.

        Raises:
            ScoringError: there is none, or it is damaged.
        """
        folder = Path(path)
        try:
            manifest = read_json(folder / MANIFEST)
        except FileNotFoundError:
            raise ScoringError(
                f"{path} holds no selection ({MANIFEST} is missing); pass the output of diffin.select"
            ) from None
        except (OSError, ValueError) as error:
            raise ScoringError(f"{folder / MANIFEST} is damaged ({error}); select again with resume=False") from error
        try:
            size = checked.whole(manifest, "size")
            kept = _read(folder / TABLE, checked.each(manifest, "fractions", checked.real), size)
            cost = _cost(checked.mapping(manifest, "cost"))
            details = checked.mapping(manifest, "details")
            return cls(checked.text(manifest, "method"), size, kept, cost, details)
        except (OSError, ValueError) as error:
            raise ScoringError(
                f"the selection in {path} is damaged ({error}); select again with resume=False"
            ) from error

    def __len__(self) -> int:
        """How many shares it holds."""
        return len(self.kept)

    def __repr__(self) -> str:
        shares = ", ".join(f"{kept.fraction:g}: {len(kept.indices)}" for kept in self.kept)
        return f"Selection({self.method!r}, of {self.size} samples {{{shares}}}, {self.cost.trainings} trainings)"


def _column(fraction: float) -> str:
    return f"weight_{fraction:g}"


def _read(file: Path, fractions: Sequence[float], size: int) -> tuple[Kept, ...]:
    """What is kept at each share.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged, or of another number of samples.
    """
    import pyarrow as pa

    if not all(0 < fraction <= 1 for fraction in fractions) or list(fractions) != sorted(set(fractions)):
        raise ValueError(f"its fractions, {list(fractions)[:5]}, are no ascending shares")
    columns = dict.fromkeys([_column(fraction) for fraction in fractions], pa.float64())
    table = reading.table(file, {"index": pa.int64(), **columns})
    if table.num_rows != size or not np.array_equal(table.column("index").to_numpy(), np.arange(table.num_rows)):
        raise ValueError(f"it does not hold {size} samples in order")
    kept = []
    for fraction in fractions:
        weights = table.column(_column(fraction)).to_numpy()
        indices = np.flatnonzero(~np.isnan(weights)).astype(np.int64)
        kept.append(Kept(fraction, indices, weights[indices]))
    return tuple(kept)


def _cost(content: Mapping[str, Any]) -> Cost:
    seconds = (checked.real(content, f"{name}_seconds") for name in ("training", "scoring"))
    return Cost(checked.whole(content, "trainings"), *seconds)


def ascending(fractions: float | Sequence[float]) -> tuple[float, ...]:
    """The shares that are asked for, ascending, each once.

    Raises:
        DiffinError: there is none, or one is not in (0, 1].
    """
    given = list(fractions) if isinstance(fractions, Iterable) else [fractions]
    if not given:
        raise DiffinError("fractions=[]: pass the shares of the training set to keep, e.g. [0.1, 0.3]")
    for fraction in given:
        try:
            float(fraction)
        except (TypeError, ValueError):
            raise DiffinError(f"fractions: {fraction!r} is no number; pass shares such as [0.1, 0.3]") from None
        if not 0 < float(fraction) <= 1:
            raise DiffinError(f"fractions={fraction:g}: pass shares above 0 and at most 1, e.g. [0.1, 0.3]")
    return tuple(sorted({float(fraction) for fraction in given}))
