"""Parts of a truth that is being computed: each is whole or absent, so that a killed run goes on with the next."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from diffin import checked
from diffin.errors import EvaluationError
from diffin.evaluation.truth import MANIFEST, Truth, read_arrays, write_arrays
from diffin.files import read_json, write_json

Arrays = dict[str, npt.NDArray[np.float64]]

_PLAN = "plan.json"
_NUMBER = "[0-9]" * 5
_IDENTITY = "identity"


class Parts:
    """Where the parts of one truth are, in a folder or in memory.

    Args:
        folder: the output; ``None`` for memory.
        identity: JSON-able: what is computed, of what. Parts of another identity are refused.
        resume: go on with what the folder holds; otherwise it is removed.

    Raises:
        EvaluationError: the folder holds another truth, or cannot be written.
    """

    def __init__(self, folder: str | Path | None, identity: Mapping[str, Any], *, resume: bool = True) -> None:
        self.folder = None if folder is None else Path(folder)
        self.identity: dict[str, Any] = json.loads(json.dumps(identity))
        self._memory: dict[int, Arrays] = {}
        self._settings: dict[str, Any] | None = None
        if self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EvaluationError(f"output={str(self.folder)!r} cannot be written: {error}") from error
        if not resume:
            (self.folder / MANIFEST).unlink(missing_ok=True)
            self._clear()

    def complete(self) -> Truth | None:
        """The truth, if it is there already.

        Raises:
            EvaluationError: another one is there.
        """
        if self.folder is None or not (self.folder / MANIFEST).exists():
            return None
        truth = Truth.open(self.folder)
        self._check(truth.metadata.get(_IDENTITY, {}))
        self._clear()
        return truth

    def settings(self, begin: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """How this truth is computed: as it was begun, else what ``begin`` says (JSON-able).

        Raises:
            EvaluationError: parts of another truth are there.
        """
        plan = None if self.folder is None else self.folder / _PLAN
        if plan is not None and plan.exists():
            try:
                known = read_json(plan)
                identity, settings = checked.mapping(known, _IDENTITY), checked.mapping(known, "settings")
            except (OSError, ValueError) as error:
                raise EvaluationError(f"{plan} is damaged ({error}); pass resume=False to begin anew") from None
            self._check(identity)
            found: dict[str, Any] = settings
            return found
        settings = begin()
        if plan is not None:
            write_json(plan, {_IDENTITY: self.identity, "settings": settings})
        return settings

    def missing(self, count: int) -> list[int]:
        """Numbers of the parts still to be made."""
        return [number for number in range(count) if not self._has(number)]

    def write(self, number: int, arrays: Arrays) -> None:
        if self.folder is None:
            self._memory[number] = arrays
        else:
            write_arrays(self._path(number), arrays)

    def read(self, number: int) -> Arrays:
        """A part.

        Raises:
            EvaluationError: it is damaged.
        """
        if self.folder is None:
            return self._memory[number]
        try:
            return read_arrays(self._path(number))
        except (OSError, ValueError) as error:
            raise EvaluationError(f"{self._path(number)} is damaged ({error}); remove it and go on") from None

    def finish(self, truth: Truth) -> Truth:
        """Save the truth, which takes the place of the parts."""
        if self.folder is not None:
            truth.save(self.folder)
            self._clear()
        return truth

    def work_folder(self, number: int) -> Path | None:
        """For what the making of a part leaves while it lasts."""
        return None if self.folder is None else self.folder / f"work-{number:05d}"

    def _has(self, number: int) -> bool:
        return number in self._memory if self.folder is None else self._path(number).exists()

    def _path(self, number: int) -> Path:
        assert self.folder is not None
        return self.folder / f"part-{number:05d}.npz"

    def _clear(self) -> None:
        assert self.folder is not None
        # The plan last: parts without one would be taken for those of whatever is computed next.
        for path in self.folder.glob(f"part-{_NUMBER}.npz"):
            path.unlink()
        for path in self.folder.glob(f"work-{_NUMBER}"):
            shutil.rmtree(path, ignore_errors=True)
        (self.folder / _PLAN).unlink(missing_ok=True)

    def _check(self, found: Mapping[str, Any]) -> None:
        differing = sorted(k for k in {*found, *self.identity} if found.get(k) != self.identity.get(k))
        if differing:
            raise EvaluationError(
                f"output={str(self.folder)!r} holds another truth (other {', '.join(differing)}); pass another folder, or "
                "resume=False to replace it"
            )
