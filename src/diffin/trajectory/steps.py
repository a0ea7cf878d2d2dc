"""The step log: what every optimizer step used, in Parquet segments that are each written whole."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from diffin import reading
from diffin.errors import TrajectoryError
from diffin.files import parse_json, write_atomically

if TYPE_CHECKING:
    import pyarrow as pa

_SUFFIX = ".parquet"
_SMALL_COLUMNS = [
    "step",
    "learning_rates",
    "clip_coefficient",
    "clip_max_norm",
    "clip_norm_type",
    "skipped",
    "constants",
]

_LARGE_COLUMNS = ["indices", "micro_batches", "randomness", "divisors", "items"]
_ADDED_LATER = ("divisors", "items")

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Clipping:
    """How gradients are clipped: multiplied by ``min(1, max_norm / norm)``.

    Attributes:
        max_norm: the largest norm let through.
        norm_type: which norm, as in ``torch.nn.utils.clip_grad_norm_``.
    """

    max_norm: float
    norm_type: float


@dataclass(frozen=True)
class Division:
    """What the losses of a step were divided by, where that is not the number of its samples.

    Attributes:
        divisors: what the sum over the items of each micro-batch (of the one batch without accumulation) is divided by in the
            objective of the step.
        items: how many items (tokens) every sample of the step has, whose losses are summed; ``None`` where samples differ.
    """

    divisors: tuple[float, ...]
    items: float | None


@dataclass(frozen=True)
class StepRecord:
    """One step, as it goes to disk.

    Attributes:
        learning_rates: used by the step, one a parameter group.
        indices: samples of its batch, in order; ``None`` where the loop did not say.
        micro_batches: how many of the indices each accumulated micro-batch had; ``None`` for a single batch.
        clip_coefficient: what the gradients were multiplied by; ``None`` where nothing was clipped.
        clipping: how they were clipped; ``None`` where they were not.
        skipped: whether the optimizer left everything as it was (overflow in mixed precision).
        constants: momentum and the like, one mapping a parameter group.
        randomness: state of the random number generator before each of its forward passes, ``None`` for one that went on
            where the last one ended; ``None`` if all did.
        division: what its losses were divided by; ``None`` for the mean over the batch, of micro-batches the mean of their
            means.
    """

    learning_rates: tuple[float, ...]
    indices: IntArray | None
    micro_batches: tuple[int, ...] | None
    clip_coefficient: float | None
    clipping: Clipping | None
    skipped: bool
    constants: Sequence[dict[str, Any]]
    randomness: tuple[bytes | None, ...] | None = None
    division: Division | None = None


def write_segment(folder: Path, first: int, records: Sequence[StepRecord]) -> None:
    """Write steps ``first``, ``first + 1``, ... as one file."""
    import pyarrow as pa

    constants: list[str | None] = [json.dumps(record.constants) for record in records]
    # Only changes are written, but the first row always: each segment can be read alone.
    shown = [now if i == 0 or now != constants[i - 1] else None for i, now in enumerate(constants)]
    values: dict[str, Iterable[Any]] = {
        "step": range(first, first + len(records)),
        "learning_rates": [record.learning_rates for record in records],
        "indices": [record.indices for record in records],
        "micro_batches": [record.micro_batches for record in records],
        "clip_coefficient": [record.clip_coefficient for record in records],
        "clip_max_norm": [None if record.clipping is None else record.clipping.max_norm for record in records],
        "clip_norm_type": [None if record.clipping is None else record.clipping.norm_type for record in records],
        "skipped": [record.skipped for record in records],
        "constants": shown,
        "randomness": [record.randomness for record in records],
        "divisors": [None if record.division is None else record.division.divisors for record in records],
        "items": [None if record.division is None else record.division.items for record in records],
    }
    table = pa.table({name: pa.array(values[name], kind) for name, kind in _types().items()})
    _write_table(folder / f"{first:012d}{_SUFFIX}", table)


def drop_from(folder: Path, step: int) -> None:
    """Remove the rows of ``step`` and later ones. Killed at any moment, it leaves a log without gaps."""
    for path in reversed(_segments(folder)):
        first = int(path.stem)
        if first >= step:
            path.unlink()
            continue
        table = _read_table(path, None)
        if first + table.num_rows > step:
            _write_table(path, table.slice(0, step - first))
        break


class StepLog:
    """What each step of a training used; step t is the one that leads from the state after t steps to the next.

    Attributes:
        learning_rates: Float64[ndarray, "steps groups"], as the optimizer used them.
        clip_coefficients: Float64[ndarray, "steps"], what the gradients were multiplied by; 1 without clipping.
        skipped: Bool[ndarray, "steps"], true where the optimizer changed nothing (overflow in mixed precision).
    """

    def __init__(self, folder: Path | None, groups: int, dataset_size: int | None = None) -> None:
        """Read the log, but for the sample indices, which are read when asked for.

        Args:
            folder: of the segments; ``None`` for a log without steps.
            groups: how many parameter groups the optimizer has.
            dataset_size: samples in the training set, below which all indices must be; ``None`` if it is unknown.

        Raises:
            TrajectoryError: a segment is damaged or missing.
        """
        paths = [] if folder is None else _segments(folder)
        self._dataset_size = dataset_size
        self._starts: list[int] = []
        self._paths = paths
        self._constants: dict[int, list[dict[str, Any]]] = {}
        rates, clips, skips = [np.empty((0, groups))], [np.empty(0)], [np.empty(0, dtype=bool)]
        bounds = [np.empty((0, 2))]
        total = 0
        for path in paths:
            table = _read_table(path, _SMALL_COLUMNS)
            rows = table.num_rows
            if not np.array_equal(table["step"].to_numpy(), np.arange(total, total + rows)) or int(path.stem) != total:
                raise TrajectoryError(
                    f"{path} does not continue the step log at step {total}: a segment before it is missing or was "
                    "replaced; restore it, or record the training again"
                )
            lists = table["learning_rates"].combine_chunks()
            values = lists.flatten()
            if not (np.diff(lists.offsets.to_numpy()) == groups).all() or values.null_count:
                raise TrajectoryError(f"{path} does not hold one learning rate for each of {groups} parameter groups")
            rates.append(values.to_numpy().reshape(rows, groups))
            clips.append(table["clip_coefficient"].fill_null(1.0).to_numpy())
            columns = [table[name].fill_null(np.nan).to_numpy() for name in ("clip_max_norm", "clip_norm_type")]
            bounds.append(np.stack(columns, axis=1))
            skips.append(table["skipped"].to_numpy(zero_copy_only=False).astype(bool))
            for row, text in enumerate(table["constants"].to_pylist()):
                if text is not None:
                    self._constants[total + row] = _parse(text, path, groups)
                elif not row:
                    raise _damaged(path, "its first step has no constants")
            self._starts.append(total)
            total += rows
        self.learning_rates: FloatArray = np.concatenate(rates)
        self.clip_coefficients: FloatArray = np.concatenate(clips)
        self._clippings: FloatArray = np.concatenate(bounds)
        self.skipped: npt.NDArray[np.bool_] = np.concatenate(skips)
        self._changes = np.array(sorted(self._constants), dtype=np.int64)
        self._segment = lru_cache(maxsize=4)(self._load)

    def __len__(self) -> int:
        """The number of steps recorded."""
        return len(self.skipped)

    def indices(self, step: int) -> IntArray | None:
        """The samples of the batch of ``step``, in order. Int64[ndarray, "batch"], or ``None`` if not recorded."""
        found = self._lists(step, "indices")
        size = self._dataset_size
        if found is not None and len(found) and (found.min() < 0 or (size is not None and found.max() >= size)):
            raise _damaged(self._path(step), f"step {step} used samples that are not in the training set")
        return found

    def micro_batches(self, step: int) -> tuple[int, ...] | None:
        """Sizes of the micro-batches whose gradients the step accumulated, in order; ``None`` for a single batch."""
        sizes = self._lists(step, "micro_batches")
        indices = None if sizes is None else self._lists(step, "indices")
        if sizes is not None and (indices is None or (sizes < 0).any() or sizes.sum() != len(indices)):
            raise _damaged(self._path(step), f"micro_batches of step {step} are not of its samples")
        return None if sizes is None else tuple(sizes.tolist())

    def randomness(self, step: int) -> tuple[bytes | None, ...] | None:
        """State of the generator before each forward pass of ``step``, as :class:`StepRecord` has it."""
        states: list[bytes | None] | None = self._value(step, "randomness").as_py()
        return None if states is None else tuple(states)

    def division(self, step: int) -> Division | None:
        """What the losses of ``step`` were divided by; ``None`` for the mean over its batch."""
        if "divisors" not in self._table(step)[0].column_names:  # an older recording
            return None
        divisors: list[float] | None = self._value(step, "divisors").as_py()
        if divisors is not None and (not all(divisors) or len(divisors) != len(self.micro_batches(step) or [1])):
            raise _damaged(self._path(step), f"divisors of step {step} are not one for each of its micro-batches")
        return None if divisors is None else Division(tuple(divisors), self._value(step, "items").as_py())

    def items_per_sample(self) -> float | None:
        """How many items (tokens) every sample that was trained on has, whose losses were summed; ``None`` where they differ.

        1 where nothing was said: a sample is one item.
        """
        found: set[float | None] = set()
        for path in self._paths:
            rows = _read_table(path, ["divisors", "items", "skipped"]).to_pylist()
            # Older recordings have no such columns.
            found |= {row["items"] if row.get("divisors") else 1.0 for row in rows if not row["skipped"]}
        return 1.0 if not found else found.pop() if len(found) == 1 else None

    def clip_coefficient(self, step: int) -> float:
        """What the gradients of ``step`` were multiplied by; 1 where nothing was clipped."""
        self._check(step)
        return float(self.clip_coefficients[step])

    def clipping(self, step: int) -> Clipping | None:
        """How the gradients of ``step`` were clipped; ``None`` where they were not."""
        self._check(step)
        max_norm, norm_type = self._clippings[step].tolist()
        return None if math.isnan(max_norm) else Clipping(max_norm, norm_type)

    def constants(self, step: int) -> list[dict[str, Any]]:
        """Momentum, betas, weight decay and so on that ``step`` used, one mapping a parameter group."""
        self._check(step)
        return self._constants[int(self._changes[np.searchsorted(self._changes, step, side="right") - 1])]

    @property
    def constants_vary(self) -> bool:
        """Whether any of the constants changed during the training."""
        first = next(iter(self._constants.values()), None)
        return any(value != first for value in self._constants.values())

    def steps_without_indices(self) -> IntArray:
        """The steps whose samples were not recorded, ascending; skipped ones, which no sample influenced, left out."""
        missing = [
            start + np.flatnonzero(_read_table(path, ["indices"])["indices"].is_null().to_numpy(zero_copy_only=False))
            for start, path in zip(self._starts, self._paths, strict=True)
        ]
        steps = np.concatenate(missing) if missing else np.empty(0, dtype=np.int64)
        return steps[~self.skipped[steps]]

    def _check(self, step: int) -> None:
        if not 0 <= step < len(self):
            raise TrajectoryError(f"step={step} was not recorded: the log has steps 0 to {len(self) - 1}")

    def _lists(self, step: int, column: str) -> IntArray | None:
        value = self._value(step, column)
        if value.is_valid and value.values.null_count:
            raise _damaged(self._path(step), f"{column} of step {step} has gaps")
        return np.array(value.values.to_numpy(), dtype=np.int64) if value.is_valid else None

    def _value(self, step: int, column: str) -> pa.Scalar:
        table, row = self._table(step)
        return table[column][row]

    def _table(self, step: int) -> tuple[pa.Table, int]:
        segment = self._number(step)
        return self._segment(segment), step - self._starts[segment]

    def _number(self, step: int) -> int:
        self._check(step)
        return int(np.searchsorted(self._starts, step, side="right")) - 1

    def _path(self, step: int) -> Path:
        return self._paths[self._number(step)]

    def _load(self, segment: int) -> pa.Table:
        return _read_table(self._paths[segment], _LARGE_COLUMNS).combine_chunks()


def _segments(folder: Path) -> list[Path]:
    """Segment files in order; anything else in the folder (leftovers of a killed writer) is ignored."""
    return sorted(path for path in folder.glob(f"*{_SUFFIX}") if path.stem.isascii() and path.stem.isdigit())


def _write_table(path: Path, table: pa.Table) -> None:
    import pyarrow.parquet as pq

    with write_atomically(path) as part:
        pq.write_table(table, part, compression="zstd")


def _read_table(path: Path, columns: Iterable[str] | None) -> pa.Table:
    known = _types()
    try:
        return reading.table(path, {name: known[name] for name in columns or known}, _ADDED_LATER)
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, reason: object) -> TrajectoryError:
    return TrajectoryError(
        f"{path} is damaged ({reason}); restore it, or remove it and every later segment and record the rest again"
    )


def _types() -> dict[str, pa.DataType]:
    """The columns of a segment."""
    import pyarrow as pa

    return {
        "step": pa.int64(),
        "learning_rates": pa.list_(pa.float64()),
        "indices": pa.list_(pa.int64()),
        "micro_batches": pa.list_(pa.int64()),
        "clip_coefficient": pa.float64(),
        "clip_max_norm": pa.float64(),
        "clip_norm_type": pa.float64(),
        "skipped": pa.bool_(),
        "constants": pa.string(),
        "randomness": pa.list_(pa.binary()),
        "divisors": pa.list_(pa.float64()),
        "items": pa.float64(),
    }


def _parse(text: str, path: Path, groups: int) -> list[dict[str, Any]]:
    try:
        found = parse_json(text)
    except ValueError as error:
        raise _damaged(path, f"constants: {error}") from None
    if not isinstance(found, list) or len(found) != groups or not all(isinstance(entry, dict) for entry in found):
        raise _damaged(path, f"constants: they are not those of {groups} parameter groups")
    return found
