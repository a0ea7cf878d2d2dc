"""How the scores were computed, from their metadata, for a person."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from diffin.report.numbers import count, share, significant

_NAMES = {
    "diffin": "Diff-In (Eq. 9 of Tan et al., 2026)",
    "tracin": "TracIn (Pruthi et al., 2020)",
    "moso": "MoSo (Tan et al., 2023)",
    "unrolled": "Unrolled differentiation",
    "replay": "Replay (exact on the recorded run)",
    "inverse-hessian": "Influence function (Koh and Liang, 2017)",
    "self-influence": "Self-influence",
}
_SHORT_NAMES = {
    "diffin": "Diff-In",
    "tracin": "TracIn",
    "moso": "MoSo",
    "unrolled": "Unrolled",
    "replay": "Replay",
    "inverse-hessian": "the influence function",
    "self-influence": "self-influence",
}
_LONGEST = 160


@dataclass(frozen=True)
class BackEnd:
    """One row of the self-check of the derivatives; strings ready to be shown."""

    name: str
    chosen: bool
    error: str
    agreement: str
    cost: str
    note: str


@dataclass(frozen=True)
class Method:
    """What the page says about the computation.

    Attributes:
        estimator: its short name, or an empty string when the metadata do not tell.
        kind: the name the estimator has in the metadata.
        query_size: samples of the query, ``None`` when unknown or when the question is about the training risk.
        rows: names and values.
        back_ends: the self-check, empty when there is none.
        everything: all metadata as indented JSON.
    """

    estimator: str
    kind: str
    query_size: int | None
    rows: list[tuple[str, str]]
    back_ends: list[BackEnd]
    everything: str

    @classmethod
    def of(cls, metadata: Mapping[str, Any], steps: list[int], extra: Mapping[str, Any]) -> Method:
        """Read the metadata of scores and whatever else the caller wants on the page.

        Args:
            metadata: of the scores; keys that are not there are left out.
            steps: of the checkpoints.
            extra: shown as it is, nested names joined by a dot.
        """
        estimator = _find(metadata, "estimator")
        described: Mapping[str, Any] = (
            estimator if isinstance(estimator, Mapping) else {"name": estimator} if estimator else {}
        )
        kind = str(described.get("name", ""))
        query_size = _find(metadata, "query_size")
        query_size = query_size if isinstance(query_size, int) else None
        rows: list[tuple[str, str]] = []
        if kind:
            settings = ", ".join(
                f"{name.replace('_', ' ')} {_value(value)}" for name, value in described.items() if name != "name"
            )
            rows.append(("Estimator", _NAMES.get(kind, kind) + (f"; {settings}" if settings else "")))
        if query_size is not None:
            rows.append(("Query", f"mean loss of {count(query_size, 'sample')}"))
        optimizer, total = _find(metadata, "optimizer"), _find(metadata, "total_steps")
        run = [str(optimizer)] if isinstance(optimizer, str) else []
        run += [count(total, "step")] if isinstance(total, int) else []
        if run:
            rows.append(("Training run", ", ".join(run)))
        shown = [f"{step:,}" for step in steps]
        if len(shown) > 24:
            shown = [*shown[:12], "\u2026", *shown[-6:]]
        if metadata.get("terms") == "runs":
            rows.append(("Trainings", str(len(steps))))
        else:
            rows.append(("Measured at steps", ", ".join(shown)))
        back_ends = _back_ends(metadata)
        derivatives = _derivatives(metadata, back_ends)
        if derivatives:
            rows.append(("Derivatives", derivatives))
        batch_size = metadata.get("batch_size")
        if isinstance(batch_size, int) and batch_size:
            rows.append(("Scoring batch", count(batch_size, "sample")))
        rows += [(name, value) for name, value in flat(extra)]
        # The failed samples stand in a section of their own.
        everything = json.dumps(
            {name: value for name, value in metadata.items() if name != "failed"}, indent=2, default=str
        )
        # Of self-influence it says whose.
        short = str(described.get("of", kind)) if kind == "self-influence" else kind
        return cls(_SHORT_NAMES.get(short, short), kind, query_size, rows, back_ends, everything)


def _derivatives(metadata: Mapping[str, Any], back_ends: list[BackEnd]) -> str:
    derivatives = _find(metadata, "derivatives")
    name = derivatives.get("name") if isinstance(derivatives, Mapping) else derivatives
    if not isinstance(name, str):
        return ""
    words = [name]
    step = derivatives.get("step") if isinstance(derivatives, Mapping) else None
    if isinstance(step, (int, float)):
        words.append(f"step {significant(step)}")
    words += [f"measured relative error {entry.error}" for entry in back_ends if entry.chosen and entry.error]
    return ", ".join(words)


def _back_ends(metadata: Mapping[str, Any]) -> list[BackEnd]:
    entries = _find(metadata, "back_ends")
    chosen = _find(metadata, "chosen")
    if not isinstance(entries, (list, tuple)):
        return []
    return [_back_end(entry, chosen) for entry in entries if isinstance(entry, Mapping)]


def _back_end(entry: Mapping[str, Any], chosen: Any) -> BackEnd:
    error, agreement, cost, failure = (entry.get(key) for key in ("error", "rank_agreement", "cost", "failure"))
    return BackEnd(
        name=str(entry.get("name")),
        chosen=entry.get("name") == chosen,
        error=_error(error) if isinstance(error, (int, float)) else "",
        agreement=f"{agreement:.3f}" if isinstance(agreement, (int, float)) else "",
        cost=f"{cost:.1f}\u00d7" if isinstance(cost, (int, float)) else "",
        note=str(failure) if failure else "in use" if entry.get("name") == chosen else "",
    )


def _error(error: float) -> str:
    if error == 0:
        return "0"
    return f"{error:.0e}".replace("-", "\u2212") if error < 1e-3 else share(error) if error >= 0.095 else f"{error:.1%}"


def _find(metadata: Mapping[str, Any], key: str) -> Any:
    """The value of ``key`` at the shallowest place of nested mappings, or ``None``."""
    level = [metadata]
    while level:
        for mapping in level:
            if mapping.get(key) is not None:
                return mapping[key]
        level = [value for mapping in level for value in mapping.values() if isinstance(value, Mapping)]
    return None


def flat(extra: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Rows of ``extra``; a mapping of plain values is one row, a deeper one has its names joined by a dot."""
    for name, value in extra.items():
        if not isinstance(value, Mapping):
            yield f"{prefix}{name}", _value(value)
        elif any(isinstance(inner, Mapping) for inner in value.values()):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", ", ".join(f"{key} {_value(inner)}" for key, inner in value.items())


def _value(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, float):
        return significant(value)
    text = str(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "\u2026"
