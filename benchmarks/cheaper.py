"""What cheaper scoring loses: rank agreement with the full probes, over what it saves.

    python benchmarks/cheaper.py [--samples 10000] [--epochs 5]

On Fashion-MNIST with a CNN of 105,866 parameters. Full: `Unrolled` by steps, measured at ten
states. Cheaper: fewer states; the parameters of some layers; and coarse to fine, where two states measure all samples and
ten those near the limit of what is dropped. Printed as Markdown.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Subset

import diffin
from data import fashion_mnist
from diffin.scoring.stability import spearman
from diffin.tasks import Classification
from table import Table, machine
from training import Run, Setting, record

DROPPED = (0.1, 0.3)
WIDTHS = (0.1, 0.2, 0.4)
"""Share of the samples, around the limit, that are measured anew by the full probes."""
LAYERS = {"all": None, "last three layers": ["3.*", "7.*", "9.*"], "last two": ["7.*", "9.*"], "last": ["9.*"]}

Floats = npt.NDArray[np.float64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    setting = Setting(samples=arguments.samples, checkpoints=10, epochs=arguments.epochs)
    headings = ["what", "passes over the data", "probes, MB", "Spearman", *(f"of the worst {d:.0%}" for d in DROPPED)]
    table = Table("Cheaper scoring", *headings)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        run = record(fashion_mnist(), "smooth", setting, folder / "run")
        full, size = _scored(run, folder / "full", states=10)
        table.add("10 states", "20", f"{size:.1f}", "1", *("1" for _ in DROPPED))
        few: dict[int, Floats] = {}
        for states in (5, 3, 2, 1):
            few[states], size = _scored(run, folder / f"states-{states}", states=states)
            table.add(f"{states} states", f"{2 * states}", f"{size:.1f}", *_agreement(full, few[states]))
        for name, patterns in list(LAYERS.items())[1:]:
            found, size = _scored(run, folder / name.replace(" ", "-"), states=10, parameters=patterns)
            table.add(f"10 states, {name}", "20", f"{size:.1f}", *_agreement(full, found))
        for width in WIDTHS:
            agreements, measured = [], 0.0
            for dropped in DROPPED:
                band = _band(few[2], dropped, width)
                again, _ = _scored(run, folder / "full", states=10, of=band)
                agreements.append(f"{_overlap(full, _refined(few[2], again, band), dropped):.3f}")
                measured = len(band) / len(full)
            table.add(f"2 states, then 10 for {width:.0%}", f"{4 + 20 * measured:.0f}", "", "", *agreements)
    print(f"{machine()}; {arguments.samples:,} samples, {arguments.epochs} epochs\n")
    print(table.markdown())


def _scored(
    run: Run, folder: Path, *, states: int, parameters: list[str] | None = None, of: npt.NDArray[np.int64] | None = None
) -> tuple[Floats, float]:
    """The influences, and the megabytes of the probes."""
    task = Classification(run.model)
    estimator = diffin.Unrolled(propagation="steps", states=states)
    probes = diffin.build_probes(
        task, run.trajectory, run.train, query=run.query, estimator=estimator, parameters=parameters, output=folder,
        progress=False,
    )  # fmt: skip
    data = run.train if of is None else Subset(run.train, of.tolist())
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 1e6
    return diffin.score_probes(task, probes, data, progress=False).influence, size


def _agreement(full: Floats, other: Floats) -> list[str]:
    return [f"{spearman(full, other):.3f}", *(f"{_overlap(full, other, dropped):.3f}" for dropped in DROPPED)]


def _overlap(full: Floats, other: Floats, share: float) -> float:
    """Which part of the samples that one would drop, being the most harmful, the other would drop too."""
    count = round(share * len(full))
    return len(set(np.argsort(-full)[:count].tolist()) & set(np.argsort(-other)[:count].tolist())) / count


def _band(coarse: Floats, dropped: float, width: float) -> npt.NDArray[np.int64]:
    """The samples that are nearest to the limit, by rank."""
    order = np.argsort(-coarse)
    limit, half = round(dropped * len(coarse)), round(width * len(coarse) / 2)
    return np.sort(order[max(0, limit - half) : limit + half])


def _refined(coarse: Floats, again: Floats, band: npt.NDArray[np.int64]) -> Floats:
    """The coarse ranking with the samples of the band in the order that the full probes give them."""
    order = np.argsort(-coarse)
    inside = np.isin(order, band)
    order[inside] = band[np.argsort(-again)]
    ranks = np.empty(len(order))
    ranks[order] = -np.arange(len(order), dtype=np.float64)
    return ranks


if __name__ == "__main__":
    main()
