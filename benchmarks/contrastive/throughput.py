"""What scoring a CLIP costs: pairs a second, over plain inference of the same pairs, and the memory it takes.

    python benchmarks/contrastive/throughput.py                                    # on a GPU: ViT-B/32, groups of 256
    python benchmarks/contrastive/throughput.py --device cpu --model vit-b-32 --group 8 --samples 16

The weights are random and take a few recorded steps of SGD on random pairs: what is measured does not depend on what they
have learned. Probes are built of small sets with two products of the Hessian, since only scoring is timed. Derivatives are
taken by differences, and under autocast, which is too coarse for those, by forward mode; the error is that of the self-check
on 16 pairs.

Plain inference are the losses of the same groups, read through the same source, at the same states, in inference mode and the
same precision; it takes turns with scoring, and figures are medians. Of a GPU seconds are those that pass, and of a processor
those of one thread, so that other work does not count. Every row is measured in a process of its own, whose peak of memory is
that of scoring: on a GPU what PyTorch has allocated, else the resident size. Opening the probes comes once, whatever the
number of pairs, and is not timed. Printed as Markdown.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.utils.data import default_collate

_HERE = Path(__file__).resolve().parent
sys.path[1:1] = [str(_HERE), str(_HERE.parents[0])]

from towers import SHAPES, RandomPairs, build  # noqa: E402

import diffin  # noqa: E402
from diffin.derivatives import choose, from_description  # noqa: E402
from diffin.derivatives.selfcheck import BackEndCheck  # noqa: E402
from diffin.estimators import ProbingEstimator  # noqa: E402
from diffin.probes import ProbeSet  # noqa: E402
from diffin.scoring.engine import Engine  # noqa: E402
from diffin.sources import open_source  # noqa: E402
from diffin.sources.composed import Composed  # noqa: E402
from diffin.task import PerSampleLoss, frozen  # noqa: E402
from diffin.tasks import Contrastive  # noqa: E402
from table import Table, machine  # noqa: E402

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}
ESTIMATORS = ("unrolled", "diffin")
_PRODUCTS = 2
_CHECKED = 16
_GROUPS = {"cuda": 32, "cpu": 2}
_MODELS = {"cuda": "vit-b-32", "cpu": "small"}


@dataclass(frozen=True)
class Setting:
    """What is measured.

    Attributes:
        device: ``"cpu"`` or ``"cuda"``.
        model: one of :data:`towers.SHAPES`.
        samples: pairs that are scored, whole groups of them.
        group: pairs that are told from each other at once.
        precision: what the towers compute in; parameters and losses are wider.
        states: of the training, at which pairs are measured.
        repetitions: of every timing, after one that warms up.
    """

    device: str
    model: str
    samples: int
    group: int
    precision: str
    states: int
    repetitions: int

    def task(self) -> Contrastive:
        """A task with the untrained model."""
        return Contrastive(
            build(self.model).to(self.device), group_size=self.group, autocast=PRECISIONS[self.precision]
        )

    def pairs(self) -> RandomPairs:
        """What is scored."""
        return RandomPairs(self.model, self.samples)


@dataclass(frozen=True)
class Measured:
    """Of all pairs at all states.

    Attributes:
        plain: seconds of plain inference.
        scoring: seconds of scoring.
        reading: seconds of reading alone, which both hold.
        peak: MiB while scoring.
    """

    plain: float
    scoring: float
    reading: float
    peak: float


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--model", choices=tuple(SHAPES), help="vit-b-32 on a GPU, small on a processor")
    parser.add_argument("--samples", type=int, help="pairs to score; 32 groups on a GPU, 2 on a processor")
    parser.add_argument("--group", type=int, default=256, help="pairs told from each other at once")
    parser.add_argument("--precision", nargs="+", choices=tuple(PRECISIONS), default=tuple(PRECISIONS))
    parser.add_argument("--estimators", nargs="+", choices=ESTIMATORS, default=ESTIMATORS)
    parser.add_argument("--states", type=int, default=1, help="of the training, at which pairs are measured")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if given.device == "auto" else given.device
    if device == "cpu":
        torch.set_num_threads(1)
    if given.child:
        setting, probes, backend = given.child
        print(json.dumps(asdict(_measured(Setting(**json.loads(setting)), Path(probes), json.loads(backend)))))
        return
    model, groups = given.model or _MODELS[device], _GROUPS[device]
    samples = given.group * (groups if given.samples is None else -(-given.samples // given.group))
    table = Table(
        "", "device", "precision", "model", "group", "estimator", "back end", "plain inference, pairs/s",
        "scoring, pairs/s", "over plain inference", "reading, of plain inference", "peak memory, MiB",
        "error of the self-check",
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        _record(Setting(device, model, samples, given.group, "float32", given.states, 0), folder / "run")
        for precision in given.precision:
            setting = Setting(device, model, samples, given.group, precision, given.states, given.repetitions)
            for name in given.estimators:
                _row(table, setting, name, folder)
    where = f"{torch.cuda.get_device_name()}; {machine()}" if device == "cuda" else machine()
    parameters = sum(p.numel() for p in build(model).parameters())
    print(f"{where}; {model}, {parameters:,} parameters; {samples:,} pairs, {given.states} states\n")
    print(table.markdown())


def _row(table: Table, setting: Setting, name: str, folder: Path) -> None:
    _say(f"{setting.precision}, {name}: probes")
    probes = folder / f"{setting.precision}-{name}"
    found = _checked(setting, name, folder / "run", probes)
    _say(f"{setting.precision}, {name}: `{found.name}`, timed")
    backend = {"name": found.name, "step": found.step}
    told = [json.dumps(asdict(setting)), str(probes), json.dumps(backend)]
    command = [sys.executable, __file__, "--device", setting.device, "--child", *told]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    measured = Measured(**json.loads(said.splitlines()[-1]))
    count = setting.samples * setting.states
    table.add(
        setting.device, setting.precision, setting.model, str(setting.group), name, f"`{found.name}`",
        f"{count / measured.plain:,.1f}", f"{count / measured.scoring:,.1f}",
        f"{measured.scoring / measured.plain:.2f}", f"{measured.reading / measured.plain:.1%}",
        f"{measured.peak:,.0f}", "" if found.error is None else f"{found.error:.1e}",
    )  # fmt: skip


def _record(setting: Setting, folder: Path) -> None:
    """A few steps of SGD on random pairs."""
    _say("recording a few steps")
    task, pairs, steps = setting.task(), RandomPairs(setting.model, 2 * setting.group, 1), 2 * setting.states
    optimizer = torch.optim.SGD(task.model.parameters(), lr=0.01)
    kept = range(1, steps, 2)  # Eq. 9 weighs a state by the steps before it
    with diffin.Recorder(
        folder, task.model, optimizer, dataset_size=len(pairs), total_steps=steps, checkpoints=kept
    ) as recorder:
        for step in range(steps):
            rows = [(step * setting.group + place) % len(pairs) for place in range(setting.group)]
            images, texts = default_collate([pairs[row] for row in rows])
            task.losses((images.to(setting.device), texts.to(setting.device))).mean().backward()
            optimizer.step()
            recorder.step(torch.tensor(rows))
            optimizer.zero_grad()


def _checked(setting: Setting, name: str, run: Path, output: Path) -> BackEndCheck:
    """Build the probes, and take a back end."""
    task = setting.task()
    estimator: ProbingEstimator = diffin.DiffIn(batch_size=setting.group)
    if name == "unrolled":
        estimator = diffin.Unrolled(propagation="segments", rank=_PRODUCTS, curvature_samples=setting.group)
    trained, query = (RandomPairs(setting.model, k * setting.group, seed) for k, seed in ((2, 1), (1, 2)))
    probes = diffin.build_probes(
        task, diffin.Trajectory.open(run), trained, query=query, estimator=estimator, output=output, progress=False
    )
    pairs = setting.pairs()
    batch = default_collate([pairs[place] for place in range(min(_CHECKED, len(pairs)))])
    (found,) = choose(task, probes, batch, "difference" if task.autocast is None else "forward").report.back_ends
    if setting.device == "cuda":
        del task
        torch.cuda.empty_cache()
    return found


def _measured(setting: Setting, path: Path, backend: dict[str, object]) -> Measured:
    """Time scoring, plain inference and reading in turn; in a process of its own."""
    task, probes = setting.task(), ProbeSet.open(path)
    source = Composed(open_source(setting.pairs()), setting.group)

    def batches() -> Iterator[tuple[object, object]]:
        return source.batches(setting.group)

    def score() -> None:
        for rows in engine.measure(batches()):  # type: ignore[arg-type]
            assert len(rows.index) == setting.group

    def infer() -> None:
        with torch.inference_mode():
            for _, batch in batches():
                moved = losses[0].to_device(batch)
                torch.stack([loss(loss.parameters, moved) for loss in losses]).cpu()

    def read() -> None:
        for _, batch in batches():
            losses[0].to_device(batch)

    with frozen(task.model):
        engine = Engine(task, probes, from_description(backend))
        if setting.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        score()
        peak = _peak(setting.device)
        losses = [
            PerSampleLoss(task, probes.load(position).state, list(probes.parameters)) for position in range(len(probes))
        ]
        contenders: list[Callable[[], None]] = [infer, score, read]
        for contender in contenders:
            contender()
        seconds = [[_timed(run, setting.device) for run in contenders] for _ in range(setting.repetitions)]
    plain, scoring, reading = (statistics.median(taken) for taken in zip(*seconds, strict=True))
    return Measured(plain, scoring, reading, peak)


def _timed(run: Callable[[], None], device: str) -> float:
    if device == "cpu":
        start = time.process_time()
        run()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def _peak(device: str) -> float:
    """MiB."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would count what the parent held when it forked
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
