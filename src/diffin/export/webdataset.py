"""Shards of WebDataset: tar archives in which a sample is a run of files of the same name with other endings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any

from diffin.errors import DatasetError
from diffin.export.chosen import Chosen
from diffin.export.data import Data
from diffin.export.members import content, copied, ended, rewritten
from diffin.files import check_regular, parse_json
from diffin.sources.tar import Member, key_of, runs, shown_key

CLASS, JSON, KEY = "cls", "json", "label"


class WebDataset(Data):
    """Samples of uncompressed tar shards, one shard after the other.

    What stays is copied byte for byte into shards of the same names, and so is what is of no sample (folders, files without
    an ending); nothing is unpacked.

    Args:
        paths: the shards, in order.
        label_column: ``"cls"`` for the member of that name, or a key of the ``json`` member; ``None`` for ``cls``, if the
            first sample has one, or the key ``label``.
        key_column: a key of the ``json`` member that tells samples apart; ``None`` for their names in the shards.

    Raises:
        DatasetError: a shard cannot be read, or holds what must not be in one.
    """

    def __init__(self, paths: Sequence[Path], label_column: str | None = None, key_column: str | None = None) -> None:
        self.files = tuple(paths)
        self.where = str(paths[0]) if len(paths) == 1 else f"{paths[0]} to {paths[-1].name}"
        self.label, self._key = label_column, key_column
        self._samples: list[int] = []
        for path in paths:
            with opened(path) as file:
                count = 0
                for key, found in _runs(path):
                    if key is None:
                        continue
                    if self.label is None and not count and not sum(self._samples):
                        self.label = _usual(file, found)
                    count += 1
            self._samples.append(count)
        self.size = sum(self._samples)

    def labels(self) -> Iterator[Any]:
        for path in self.files:
            with opened(path) as file:
                for key, found in _runs(path):
                    if key is not None:
                        yield self._label(path, key, file, found)[1]

    def label_of(self, number: int) -> Any:
        return str(number) if self.label == CLASS else number

    def keys(self) -> Iterator[str]:
        for path in self.files:
            with opened(path) as file:
                for name, found in _runs(path):
                    if name is not None:
                        yield shown_key(key_of(file, name, found, self._key))

    def write(self, folder: Path, scratch: Path, chosen: Chosen, labels: Mapping[int, Any]) -> None:
        stays, position = chosen.among(self.size), 0
        for path, samples in zip(self.files, self._samples, strict=True):
            of_shard = list(islice(stays, samples))
            new = {at - position: labels[at] for at in range(position, position + samples) if at in labels}
            self._write(path, folder / path.name, of_shard, new)
            position += samples

    def _write(self, path: Path, target: Path, stays: Sequence[bool], labels: Mapping[int, Any]) -> None:
        last, position = None, 0
        with path.open("rb") as source, target.open("wb") as out:
            for key, found in _runs(path):
                if key is None:
                    copied(source, found[0], out)
                    continue
                if position == len(stays):
                    raise DatasetError(f"{path} has changed while it was read; write again")
                if stays[position]:
                    if key == last:
                        raise DatasetError(
                            f"{path} has two samples {key!r} with none left between; give them other names"
                        )
                    last = key
                    self._copy(path, key, source, found, out, labels.get(position))
                position += 1
            ended(out)
        if position != len(stays):
            raise DatasetError(f"{path} has changed while it was read; write again")

    def _copy(
        self, path: Path, key: str, source: IO[bytes], found: Sequence[Member], out: IO[bytes], label: Any
    ) -> None:
        labelled = None if label is None else self._label(path, key, source, found)
        for member in found:
            if labelled is not None and member is labelled[0]:
                rewritten(source, member, _replaced(content(source, member), self.label, label), out)
            else:
                copied(source, member, out)

    def _label(self, path: Path, key: str, file: IO[bytes], found: Sequence[Member]) -> tuple[Member, Any]:
        """The member that holds the label, and the label."""
        kind = CLASS if self.label == CLASS else JSON
        member = next((member for member in found if member.kind == kind), None)
        if member is None:
            raise DatasetError(
                f"sample {key!r} of {path} has no member .{kind} with its label; name it with label_column"
            )
        try:
            text = content(file, member).decode()
            return member, text.strip() if kind == CLASS else parse_json(text)[self.label]
        except (ValueError, KeyError, TypeError) as error:
            raise DatasetError(
                f"{member.name!r} of {path} holds no label {self.label!r} ({error}); name it with label_column"
            ) from error


def _runs(path: Path) -> Iterator[tuple[str | None, list[Member]]]:
    with opened(path) as file:
        yield from runs(file, str(path))


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """A shard to read.

    Raises:
        DatasetError: it cannot be opened.
    """
    try:
        check_regular(path)
        file = path.open("rb")
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({error}); pass one that can") from error
    with file:
        yield file


def _usual(file: IO[bytes], found: Sequence[Member]) -> str | None:
    kinds = {member.kind: member for member in found}
    if CLASS in kinds:
        return CLASS
    if JSON in kinds:
        try:
            parsed = parse_json(content(file, kinds[JSON]))
        except ValueError:
            return None
        return KEY if isinstance(parsed, dict) and KEY in parsed else None
    return None


def _replaced(data: bytes, name: str | None, label: Any) -> bytes:
    """The bytes of a member with another label, and nothing else changed."""
    text = data.decode()
    if name == CLASS:
        blank = len(text) - len(text.lstrip())
        return (text[:blank] + str(label) + text[blank + len(text.strip()) :]).encode()
    fields: dict[str | None, Any] = json.loads(text)
    fields[name] = label
    return json.dumps(fields, ensure_ascii=False).encode()
