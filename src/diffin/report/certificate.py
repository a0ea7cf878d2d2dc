"""The page of a deletion: what a person would ask of a model that is said to have forgotten."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffin.actions.delete import Certificate, Certified, Deletion
from diffin.report.figures import Figure
from diffin.report.html import write_html
from diffin.report.method import flat
from diffin.report.numbers import count, share, three_digits

_COLOURS = {"original": "--mark", "deleted": "--help", "retrained": "--harm"}
_LISTED = 60


@dataclass(frozen=True)
class _Row:
    name: str
    cells: list[str]


def write_certificate(
    deletion: Deletion, path: str | Path, *, title: str = "What was forgotten", extra: Mapping[str, Any] | None = None
) -> Path:
    """Write the certificate of a deletion as one HTML page: no other file, no network.

    Args:
        deletion: a :class:`diffin.actions.delete.Deletion`.
        path: the file to write; replaced when complete.
        title: the headline.
        extra: whatever else is to stand under "how it was computed".

    Raises:
        MissingDependencyError: the ``report`` extra is not installed.
    """
    certificate = deletion.certificate
    figures = {"losses": losses_by_set(certificate), "regime": along_the_way(certificate)}
    models = certificate.models
    content = {
        "title": title,
        "verdict": verdict(certificate),
        "holds": bool(certificate.regime["holds"]),
        "forced": bool(certificate.settings.get("forced")),
        "facts": facts(certificate),
        "models": list(models),
        "rows": rows(certificate),
        "attacks": attacks(certificate),
        "has_population": models["original"].population_attack is not None,
        "has_test": "test" in models["original"].on,
        "distances": distances(certificate),
        "figures": figures,
        "samples": [int(i) for i in deletion.samples[:_LISTED]],
        "more": max(0, len(deletion.samples) - _LISTED),
        "method": flat({**certificate.settings, "seconds": certificate.seconds, **(extra or {})}),
    }
    drawn = {name: {"traces": figure.traces, "layout": figure.layout} for name, figure in figures.items()}
    return write_html(Path(path), "certificate.html", content, {"figures": drawn})


def verdict(certificate: Certificate) -> str:
    """The outcome in a sentence or two."""
    original, deleted = certificate.models["original"], certificate.models["deleted"]
    retrained = certificate.models.get("retrained")
    before, after = original.on["forgotten"], deleted.on["forgotten"]
    said = f"The mean loss on the forgotten samples went from {before.loss:.3g} to {after.loss:.3g}"
    if retrained is not None:
        said += f"; a model trained without them has {retrained.on['forgotten'].loss:.3g}"
        if deleted.gap_closed is not None:
            said += f", so that {share(deleted.gap_closed)} of the difference is closed"
    said += "."
    test = deleted.on.get("test")
    if test is not None and test.accuracy is not None:
        was = original.on["test"].accuracy
        said += f" Test accuracy went from {was:.1%} to {test.accuracy:.1%}"
        there = None if retrained is None else retrained.on["test"].accuracy
        said += f" (retrained: {there:.1%})." if there is not None else "."
    return said


def facts(certificate: Certificate) -> list[tuple[str, str]]:
    """The numbers at the top."""
    found = [
        ("Forgotten", f"{certificate.settings['samples']:,} of {certificate.settings['dataset_size']:,}"),
        ("Deletion took", f"{certificate.seconds['deletion']:,.1f} s"),
    ]
    if "retraining" in certificate.seconds:
        took = certificate.seconds["retraining"]
        found.append(("Retraining took", f"{took:,.1f} s"))
        found.append(("Times a retraining", f"{certificate.seconds['deletion'] / max(took, 1e-9):.2f}"))
    closed = certificate.models["deleted"].gap_closed
    if closed is not None:
        found.append(("Loss gap closed", share(closed)))
    return found


def rows(certificate: Certificate) -> list[_Row]:
    """Losses and accuracies by set, a column for each model."""
    found = []
    models = certificate.models.values()
    for name, measured in certificate.models["original"].on.items():
        label = f"{name} ({count(measured.samples, 'sample')})"
        found.append(_Row(f"loss, {label}", [three_digits(m.on[name].loss) for m in models]))
        if measured.accuracy is not None:
            found.append(_Row(f"accuracy, {label}", [_percent(m.on[name].accuracy) for m in models]))
    return found


def attacks(certificate: Certificate) -> list[_Row]:
    """Areas under the curves of the attacks, a column for each model."""
    kinds: dict[str, Callable[[Certified], float | None]] = {
        "by loss": lambda m: m.threshold_attack,
        "by population": lambda m: m.population_attack,
    }
    found = [_Row(name, [_three(of(m)) for m in certificate.models.values()]) for name, of in kinds.items()]
    return [row for row in found if any(row.cells)]


def distances(certificate: Certificate) -> list[_Row]:
    """How far the parameters are from each other."""
    models = certificate.models.values()
    found = [_Row("from the original", [three_digits(m.distance) for m in models])]
    if "retrained" in certificate.models:
        found.append(_Row("from the retrained", [three_digits(m.to_retrained or 0.0) for m in models]))
        found.append(_Row("cosine of the change with that of retraining", [_three(m.cosine) for m in models]))
    return found


def losses_by_set(certificate: Certificate) -> Figure:
    """Mean losses, in groups by set, a bar for each model."""
    sets = list(certificate.models["original"].on)
    traces = [
        {
            "type": "bar",
            "name": name,
            "x": sets,
            "y": [_digits(model.on[which].loss) for which in sets],
            "marker": {"color": _COLOURS[name]},
            "hovertemplate": f"{name}: %{{y:.3~g}}<extra></extra>",
        }
        for name, model in certificate.models.items()
    ]
    layout = {"yaxis": {"title": {"text": "mean loss"}, "rangemode": "tozero"}, "barmode": "group"}
    said = "; ".join(
        f"{which}: " + ", ".join(f"{n} {three_digits(m.on[which].loss)}" for n, m in certificate.models.items())
        for which in sets
    )
    return Figure(traces, layout, f"Mean loss. {said[0].upper()}{said[1:]}.")


def along_the_way(certificate: Certificate) -> Figure:
    """The loss on the forgotten samples along the displacement: foreseen, and as it is."""
    found = certificate.regime
    steps = [0.0, *found["fractions"]]
    start = certificate.models["original"].on["forgotten"].loss
    traces = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": name,
            "x": steps,
            "y": [_digits(start), *(_digits(v) for v in found[key])],
            "line": {"color": colour, **({"dash": "dash"} if key == "predicted" else {})},
            "hovertemplate": f"{name}: %{{y:.3~g}}<extra></extra>",
        }
        for name, key, colour in (("foreseen", "predicted", "--mark"), ("as it is", "actual", "--help"))
    ]
    layout = {
        "xaxis": {"title": {"text": "share of the displacement"}},
        "yaxis": {"title": {"text": "mean loss, forgotten"}},
    }
    ends = (_digits(found[key][-1]) for key in ("predicted", "actual", "kept_actual"))
    foreseen, real, kept = (three_digits(v) if v is not None else "n/a" for v in ends)
    caption = (
        f"At the whole displacement the linearised network foresees {foreseen} on the forgotten samples, and the loss is "
        f"{real}. On kept samples it went from {three_digits(found['kept_before'])} to {kept}."
    )
    return Figure(traces, layout, caption)


def _digits(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _three(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}".replace("-", "\u2212")
