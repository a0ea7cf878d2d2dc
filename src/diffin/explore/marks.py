"""What a person decides about samples: kept in a file that is whole at any time, with a way back."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from diffin import checked
from diffin.actions.clean.decisions import FORMAT, KIND, Verdict
from diffin.errors import DatasetError
from diffin.export import Chosen
from diffin.files import read_json, write_atomically
from diffin.sources import Indices

NONE, KEEP, DROP, RELABEL = range(4)
VERDICTS: tuple[Verdict | None, ...] = (None, "keep", "drop", "relabel")
"""Verdicts by code; none for a sample that is not decided about."""
_MOST_UNDONE = 1000
_LARGEST_LABEL = 2**31 - 1


@dataclass(frozen=True, eq=False)
class _Before:
    rows: Indices
    codes: npt.NDArray[np.int8]
    labels: npt.NDArray[np.int32]


class Marks:
    """A decision about each of N samples, or none.

    Args:
        size: N.
        path: the file that they are kept in, read if it is there; ``None`` to keep them in memory alone.
        given: Int[ndarray, "N"], the class that every sample is labelled as, -1 where it is not known (yet); written beside
            a decision, so that who follows it can tell that it is about the same labels. May be filled in later.
        classes: how many classes there are; 0 where there are none, and samples cannot be relabelled.

    Raises:
        DatasetError: the file cannot be read, or is about other samples.
    """

    def __init__(self, size: int, path: Path | None = None, *, given: Any = None, classes: int = 0) -> None:
        self.codes = np.zeros(size, dtype=np.int8)
        self.labels = np.full(size, -1, dtype=np.int32)
        self.given = np.full(size, -1, dtype=np.int32) if given is None else given
        self.classes, self.path, self.version = classes, path, 0
        self._history: list[_Before] = []
        self._lock, self._saving, self._saved = threading.RLock(), threading.Lock(), 0
        self._stamp: tuple[int, int] | None = None
        if path is not None and path.exists():
            self._read(path)

    def set(self, rows: Indices | Sequence[int], verdict: Verdict | None, label: int | None = None) -> int:
        """Decide about some samples.

        Args:
            rows: indices of the samples.
            verdict: as in a :class:`diffin.actions.clean.decisions.Decision`; ``None`` to take decisions back.
            label: the new class of those to relabel. One that has the class already is kept.

        Returns:
            About how many samples something changed.

        Raises:
            DatasetError: there is no such sample, verdict or class.
        """
        wanted: Indices = np.unique(np.asarray(rows, dtype=np.int64))
        if verdict not in VERDICTS or (len(wanted) and not 0 <= wanted[0] <= wanted[-1] < len(self.codes)):
            raise DatasetError(
                f"verdict={verdict!r} about samples of {len(self.codes)}: pass keep, drop, relabel or None"
            )
        if (verdict == "relabel") != (label is not None) or (label is not None and not 0 <= label < self.classes):
            raise DatasetError(
                f"label={label}: relabelling needs one of {self.classes} classes, and nothing else takes one"
            )
        with self._lock:
            codes = np.full(len(wanted), VERDICTS.index(verdict), dtype=np.int8)
            labels = np.full(len(wanted), -1 if label is None else label, dtype=np.int32)
            if label is not None:
                same = self.given[wanted] == label
                codes[same], labels[same] = KEEP, -1
            changed = (self.codes[wanted] != codes) | (self.labels[wanted] != labels)
            wanted = wanted[changed]
            if len(wanted):
                self._history.append(_Before(wanted, self.codes[wanted], self.labels[wanted]))
                del self._history[:-_MOST_UNDONE]
                self.codes[wanted], self.labels[wanted] = codes[changed], labels[changed]
                self.version += 1
        return len(wanted)

    def undo(self) -> Indices:
        """Take the last change back; the samples that it was about, none where nothing is left to take back."""
        with self._lock:
            if not self._history:
                return np.empty(0, dtype=np.int64)
            before = self._history.pop()
            self.codes[before.rows], self.labels[before.rows] = before.codes, before.labels
            self.version += 1
            return before.rows

    @property
    def undoable(self) -> int:
        """How many changes can be taken back."""
        return len(self._history)

    @property
    def counts(self) -> dict[str, int]:
        """How many samples have each verdict."""
        found = np.bincount(self.codes, minlength=len(VERDICTS))
        return {verdict: int(found[code]) for code, verdict in enumerate(VERDICTS) if verdict is not None}

    def to_json(self) -> dict[str, Any]:
        """In the format of the review page, which ``diffin clean --decisions`` reads; samples ascending.

        ``given`` is null where the class is not known: of data without classes, and until labels have been read.
        """
        rows = np.flatnonzero(self.codes)
        entries = []
        for row, code, label, given in zip(
            rows.tolist(), self.codes[rows].tolist(), self.labels[rows].tolist(), self.given[rows].tolist(), strict=True
        ):
            entry: dict[str, Any] = {"index": row, "given": given if given >= 0 else None, "decision": VERDICTS[code]}
            entries.append({**entry, "label": label} if code == RELABEL else entry)
        return {"format": FORMAT, "kind": KIND, "samples": len(self.codes), "decisions": entries}

    def chosen(self) -> Chosen:
        """What stays: all but the samples to drop, under their new labels. For :func:`diffin.export.export`.

        Raises:
            DatasetError: nothing stays, or samples are relabelled and not every class is known.
        """
        stays = np.flatnonzero(self.codes != DROP)
        if not (self.codes == RELABEL).any():
            return Chosen(len(self.codes), stays)
        if (self.given < 0).any():
            raise DatasetError("samples are relabelled, and not all labels have been read yet; wait until they have")
        given = self.given.astype(np.int64)
        return Chosen(len(self.codes), stays, given, np.where(self.labels >= 0, self.labels, given)[stays])

    def save(self) -> bool:
        """Write the file, if there is one and something changed; the old one is whole until the new one is.

        Returns:
            Whether it was written.

        Raises:
            DatasetError: something else has changed the file meanwhile, or it cannot be written.
        """
        if self.path is None:
            return False
        with self._saving:
            with self._lock:
                if self._saved == self.version:
                    return False
                content, version = self.to_json(), self.version
            if _stamp(self.path) != self._stamp:
                raise DatasetError(f"{self.path} was changed by something else; decisions are no longer saved there")
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with write_atomically(self.path, unique=True) as part:
                    part.write_text(_json(content), encoding="utf-8")
            except OSError as error:
                raise DatasetError(f"{self.path} cannot be written ({error}); free some space") from error
            self._saved, self._stamp = version, _stamp(self.path)
        return True

    def known(self) -> None:
        """Say that classes have been filled in, so that the file is written again with them."""
        with self._lock:
            self.version += 1 if self.codes.any() else 0

    def _read(self, path: Path) -> None:
        self._stamp = _stamp(path)
        try:
            content = read_json(path)
            if content.get("kind") != KIND or content.get("format") != FORMAT:
                raise ValueError(f"it is no {KIND} of format {FORMAT}")
            if content.get("samples") != len(self.codes):
                raise ValueError(f"it is about {content.get('samples')} samples, and there are {len(self.codes)}")
            for entry in checked.each(content, "decisions", checked.mapping):
                row, verdict = checked.whole(entry, "index"), checked.entry(entry, "decision")
                label = checked.optional({"label": None, **entry}, "label", checked.whole)
                known = verdict in VERDICTS[1:] and (verdict == "relabel") == (label is not None)
                if not known or row >= len(self.codes) or (label or 0) > _LARGEST_LABEL:
                    raise ValueError(f"it holds something that is no decision, {repr(entry)[:200]}")
                code = VERDICTS.index(verdict)
                given = int(self.given[row])
                if -1 not in (given, -1 if entry.get("given") is None else given) and entry["given"] != given:
                    raise ValueError(f"sample {row} was labelled {entry['given']} then, and is labelled {given} now")
                self.codes[row], self.labels[row] = code, -1 if label is None else label
        except (OSError, ValueError) as error:
            raise DatasetError(f"{path} holds no decisions about these samples: {error}; pass another file") from None


def _json(content: dict[str, Any]) -> str:
    """One decision a line: a file of many stays readable, and small."""
    entries = ",\n".join("  " + json.dumps(entry) for entry in content["decisions"])
    rest = json.dumps({key: value for key, value in content.items() if key != "decisions"})
    return f'{rest[:-1]}, "decisions": [\n{entries}\n]}}\n'


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_size
