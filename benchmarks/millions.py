"""A million samples out of shards: throughput over plain inference through the same pipeline, and memory along the way.

    python benchmarks/millions.py [--samples 1000000] [--kind webdataset|parquet] [--estimators unrolled diffin]
    python benchmarks/millions.py --samples 20000      # minutes

Fashion-MNIST, shifted, mirrored and made noisy, as PNG in 100 shards of WebDataset or files of Parquet, made once and kept in
benchmarks/.cache/millions. The CNN of 105,866 parameters is trained on 10,000 of the originals; `Unrolled` measures at ten
states, `DiffIn` at five. Every scoring is a process of its own on one thread, with its resident memory looked at each second;
plain inference is the losses at the same states, of the first 50,000 samples. Printed as Markdown.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

import diffin
from data import FashionMNIST, fashion_mnist
from diffin.probes import ProbeSet
from diffin.sources import Parquet, WebDataset, open_source
from diffin.task import PerSampleLoss, frozen
from diffin.tasks import Classification
from networks import cnn
from table import Table, machine
from training import Setting, record

CACHE = Path(__file__).resolve().parent / ".cache" / "millions"
SHARDS = 100
BATCH_SIZE = 256
PLAIN_SAMPLES = 50_000
ESTIMATORS: dict[str, tuple[int, diffin.estimators.ProbingEstimator]] = {
    "unrolled": (10, diffin.Unrolled()),
    "diffin": (5, diffin.DiffIn()),
}
_MEAN, _DEVIATION = 0.2860, 0.3530


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--kind", choices=("webdataset", "parquet"), default="webdataset")
    parser.add_argument("--estimators", nargs="+", choices=tuple(ESTIMATORS), default=tuple(ESTIMATORS))
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.child:
        _work(arguments.kind, *arguments.child)
        return
    folder = made(arguments.samples, arguments.kind)
    print(f"{machine()}; {arguments.samples:,} samples, {arguments.kind}\n")
    table = Table(
        "",
        "what",
        "seconds",
        "samples a second",
        "over plain inference",
        "resident MiB after a tenth",
        "at the peak",
        "rows",
    )
    with tempfile.TemporaryDirectory() as temporary:
        at = Path(temporary)
        start = time.perf_counter()
        count = len(opened(folder, arguments.kind))
        table.add(
            "opening the shards, with their index", f"{time.perf_counter() - start:.1f}", "", "", "", "", f"{count:,}"
        )
        for name in arguments.estimators:
            states, estimator = ESTIMATORS[name]
            probes = at / name
            run = record(fashion_mnist(), "smooth", Setting(checkpoints=states), at / f"run-{name}")
            diffin.build_probes(
                Classification(run.model), run.trajectory, run.train, query=run.query, estimator=estimator, output=probes,
                progress=False,
            )  # fmt: skip
            plain = _watched(arguments.kind, folder, probes, "")[0]
            seconds, early, peak = _watched(arguments.kind, folder, probes, str(at / f"scores-{name}"))
            scores = diffin.Scores.open(at / f"scores-{name}")
            rate = count / seconds
            few = min(PLAIN_SAMPLES, count)
            table.add(
                f"plain inference, {states} states", f"{plain:.1f}", f"{few / plain:,.0f}", "1", "", "", f"{few:,}"
            )
            ratio = few / plain / rate
            told = f"{name}: {ratio:.2f} times plain inference, {rate:,.0f} samples a second, {early:.0f} and {peak:.0f} MiB"
            print(told, file=sys.stderr)  # an hour each: worth knowing before the table is whole
            table.add(
                f"scoring, {name}", f"{seconds:.1f}", f"{rate:,.0f}", f"{ratio:.2f}", f"{early:.0f}", f"{peak:.0f}",
                f"{len(scores):,}",
            )  # fmt: skip
    print(table.markdown())


def opened(folder: Path, kind: str) -> WebDataset | Parquet:
    """The samples as they are read."""
    if kind == "parquet":
        return Parquet(folder, decoded_row)
    return WebDataset(folder, decoded, index=folder.with_suffix(".index"), progress=False)


def decoded(members: dict[str, bytes]) -> tuple[Tensor, int]:
    """A standardised picture and its class."""
    return _picture(members["png"]), int(members["cls"])


def decoded_row(row: dict[str, object]) -> tuple[Tensor, int]:
    """The same of a row."""
    return _picture(row["png"]), int(row["label"])  # type: ignore[call-overload,arg-type]


def _picture(data: object) -> Tensor:
    with Image.open(io.BytesIO(data)) as image:  # type: ignore[arg-type]
        pixels = torch.from_numpy(np.array(image, dtype=np.float32))
    return pixels.unsqueeze(0).div_(255).sub_(_MEAN).div_(_DEVIATION)


def _work(kind: str, folder: str, probes: str, output: str) -> None:
    """Score, or take the plain losses where there is no output; prints the seconds without the start."""
    task, found, data = Classification(cnn()), ProbeSet.open(probes), opened(Path(folder), kind)
    len(data)
    start = time.perf_counter()
    if output:
        diffin.score_probes(task, found, data, output=output)
    else:
        states = [found.load(position).state for position in range(len(found))]
        with frozen(task.model), torch.inference_mode():
            losses = [PerSampleLoss(task, state) for state in states]
            for _, batch in open_source(data).batches(BATCH_SIZE, 0, min(PLAIN_SAMPLES, len(data))):
                for loss in losses:
                    loss(loss.parameters, batch)
    print(time.perf_counter() - start)


def _watched(kind: str, folder: Path, probes: Path, output: str) -> tuple[float, float, float]:
    """Seconds of a process, and its resident MiB after a tenth of its time and at the peak."""
    command = [sys.executable, __file__, "--kind", kind, "--child", str(folder), str(probes), output]
    sizes = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            sizes.append(_resident(process.pid))
            time.sleep(1)
        assert process.stdout is not None
        said = process.stdout.read()
    if process.returncode:
        raise SystemExit(process.returncode)
    return float(said.split()[-1]), sizes[len(sizes) // 10], max(sizes)


def _resident(process: int) -> float:
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def made(samples: int, kind: str) -> Path:
    """The folder of the shards; made under another name and promoted, so that it is whole."""
    folder = CACHE / f"{kind}-{samples}"
    if folder.is_dir():
        return folder
    part = folder.with_suffix(".part")
    part.mkdir(parents=True, exist_ok=True)
    for number, rows in enumerate(np.array_split(np.arange(samples), SHARDS)):
        (_parquet if kind == "parquet" else _tar)(part, number, rows)
        print(f"\rmaking shard {number + 1} of {SHARDS}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    part.rename(folder)
    return folder


def _tar(folder: Path, number: int, rows: npt.NDArray[np.int64]) -> None:
    with tarfile.open(folder / f"{number:05d}.tar", "w") as archive:
        for row, picture, label in _samples(rows):
            for ending, data in (("png", picture), ("cls", str(label).encode())):
                info = tarfile.TarInfo(f"{row:09d}.{ending}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))


def _parquet(folder: Path, number: int, rows: npt.NDArray[np.int64]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = list(_samples(rows))
    columns = {"png": [picture for _, picture, _ in found], "label": [label for _, _, label in found]}
    pq.write_table(pa.table(columns), folder / f"{number:05d}.parquet", row_group_size=1000)


@cache
def _originals() -> FashionMNIST:
    return fashion_mnist()


def _samples(rows: npt.NDArray[np.int64]) -> Iterator[tuple[int, bytes, int]]:
    """Row, PNG and class: each row an original, shifted by up to two pixels, mirrored or not, with noise; by its number."""
    data = _originals()
    for row in rows.tolist():
        random = np.random.default_rng(row)
        origin = row % len(data.train_images)
        picture = np.roll(data.train_images[origin], random.integers(-2, 3, 2), axis=(0, 1))
        if random.integers(2):
            picture = picture[:, ::-1]
        noisy = np.clip(picture + random.normal(0, 4, picture.shape), 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noisy).save(buffer, "PNG", compress_level=1)
        yield row, buffer.getvalue(), int(data.train_labels[origin])


if __name__ == "__main__":
    main()
