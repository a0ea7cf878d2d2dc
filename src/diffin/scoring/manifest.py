"""What a set of scores was computed from: written before the first part, completed after the last."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, get_args

from diffin import checked
from diffin.errors import ScoringError
from diffin.probes import ProbeSet
from diffin.scoring.columns import Terms, names

FORMAT_VERSION = 1
_ADDED_LATER = frozenset({"keyed"})
LISTED_FAILURES = 1000
"""How many failed samples are listed by index; all of them are counted."""


@dataclass(frozen=True)
class Manifest:
    """How scores were computed. Two runs with equal manifests write equal bytes.

    Attributes:
        probes: digest, steps, counts and metadata of the probes.
        derivatives: what recreates the back end: its name, and its step if it has one.
        batch_size: samples measured at once.
        part_rows: samples of a part; the last part may hold fewer.
        length: samples of the dataset, ``None`` if that was unknown.
        sample: digest of a few samples of the dataset, to notice another dataset of the same length.
        self_check: what the self-check of the derivatives found, ``None`` if it was not run.
        device: where the samples were measured.
        terms: what the terms of an influence are.
        keyed: whether rows have the key of their sample, and the reason where it has no influence.
        rows: samples scored; ``None`` until the scores are complete.
        failed_count: samples whose loss or influence is not finite.
        failed: the first of their indices.
    """

    probes: Mapping[str, Any]
    derivatives: Mapping[str, Any]
    batch_size: int
    part_rows: int
    length: int | None
    sample: str
    self_check: Mapping[str, Any] | None = None
    device: str = "cpu"
    terms: Terms = "draws"
    keyed: bool = False
    rows: int | None = None
    failed_count: int = 0
    failed: tuple[int, ...] = field(default=())

    @property
    def steps(self) -> tuple[int, ...]:
        return tuple(self.probes["steps"])

    @property
    def columns(self) -> list[str]:
        return names(self.steps, self.terms, keyed=self.keyed)

    @property
    def parts(self) -> int | None:
        """The number of parts of complete scores."""
        return None if self.rows is None else math.ceil(self.rows / self.part_rows)

    def completed(self, rows: int, failed_count: int, failed: tuple[int, ...]) -> Manifest:
        return replace(self, rows=rows, failed_count=failed_count, failed=failed)

    def to_json(self) -> dict[str, Any]:
        content = {
            "format": FORMAT_VERSION,
            "complete": self.rows is not None,
            "columns": self.columns,
            **asdict(self),
        }
        plain: dict[str, Any] = _without_nan(content)
        return plain

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Manifest:
        """Read what :meth:`to_json` wrote.

        Raises:
            ScoringError: it is of another format, or an entry is missing.
        """
        if content.get("format") != FORMAT_VERSION:
            raise ScoringError(f"the scores have format {content.get('format')!r}; this version reads {FORMAT_VERSION}")
        try:
            _check_entries(content)
        except ValueError as error:
            raise ScoringError(
                f"the manifest of the scores is damaged ({error}); score again into another folder"
            ) from None
        known = {f.name: content[f.name] for f in fields(cls) if f.name in content or f.name not in _ADDED_LATER}
        return cls(**{**known, "failed": tuple(known["failed"])})

    def differences(self, other: Manifest) -> list[str]:
        """What keeps ``other`` from going on with this run, in words."""
        found = []
        if self.probes["digest"] != other.probes["digest"]:
            found.append(f"the probes (digest {self.probes['digest']} there, {other.probes['digest']} now)")
        for name in ("derivatives", "batch_size", "part_rows", "length"):
            there, now = getattr(self, name), getattr(other, name)
            if there != now:
                found.append(f"{name} ({there} there, {now} now)")
        if self.length == other.length and self.sample != other.sample:
            found.append("the samples of the dataset")
        return found


def _check_entries(content: Mapping[str, Any]) -> None:
    """Raise ValueError for an entry that is missing, of another type, or does not fit the others."""
    probes = checked.mapping(content, "probes")
    checked.text(probes, "digest")
    steps = checked.each(probes, "steps", checked.whole)
    if not steps or len(set(steps)) < len(steps):
        raise ValueError("'steps' is empty, or holds one twice")
    checked.each(probes, "counts", checked.whole)
    checked.mapping(probes, "metadata")
    checked.mapping(content, "derivatives")
    checked.whole(content, "batch_size")  # 0 by Replay, which measures none
    checked.whole(content, "part_rows", 1)
    checked.optional(content, "length", checked.whole)
    for name in ("sample", "device"):
        checked.text(content, name)
    checked.optional(content, "self_check", checked.mapping)
    if checked.text(content, "terms") not in get_args(Terms):
        raise ValueError(f"'terms' is {content['terms'][:40]!r}, and should be one of {', '.join(get_args(Terms))}")
    if "keyed" in content:
        checked.flag(content, "keyed")
    rows = checked.optional(content, "rows", checked.whole)
    failed = checked.each(content, "failed", checked.whole)
    count = checked.whole(content, "failed_count")
    if len(failed) > count or (rows is not None and (count > rows or max(failed, default=-1) >= rows)):
        raise ValueError("'failed' lists more samples than there are")


def describe_probes(probes: ProbeSet) -> dict[str, Any]:
    return {
        "digest": probes.digest,
        "steps": list(probes.steps),
        "counts": list(probes.counts),
        "metadata": dict(probes.metadata),
    }


def _without_nan(value: Any) -> Any:
    """JSON has no numbers that are not finite: they become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(entry) for entry in value]
    return value
