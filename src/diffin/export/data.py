"""What every kind of data on disk can do: say its labels, and write a part of itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from diffin.export.chosen import Chosen


class Data(ABC):
    """Samples on disk, in a fixed order.

    Attributes:
        where: what to call it in a sentence.
        files: what it was opened from, nothing of which may be written to.
        size: the number of samples.
        label: the column, member or key that holds the labels; ``None`` where none was found.
    """

    where: str
    files: tuple[Path, ...]
    size: int
    label: str | None

    @abstractmethod
    def labels(self) -> Iterable[Any]:
        """The label of every sample, as it is on disk: a word or a number. Asked for only where ``label`` is not ``None``."""

    @abstractmethod
    def label_of(self, number: int) -> Any:
        """How a class would be written if classes were numbered as is usual for this kind; ``None`` if nothing is usual."""

    @abstractmethod
    def keys(self) -> Iterable[str]:
        """What every sample is called where it is stored.

        Raises:
            DatasetError: nothing says.
        """

    @abstractmethod
    def write(self, folder: Path, scratch: Path, chosen: Chosen, labels: Mapping[int, Any]) -> None:
        """Write what stays, in order.

        Args:
            folder: empty, and becomes the result.
            scratch: for files needed meanwhile.
            chosen: what stays.
            labels: the new label, as it is on disk, of each sample that gets one, by position.
        """
