"""Measuring on a Ray cluster: Ray Data hands ranges of positions to a pool of actors that grows and shrinks.

The driver plans, and waits. Nothing but the numbers of parts travels: an actor opens the data, the probes and the folder of
the scores for itself. An actor or a node that dies is replaced, and what it was measuring is handed out again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from diffin.errors import MissingDependencyError, ScoringError
from diffin.progress import phase
from diffin.scoring.engines.base import Job, ScoringEngine, await_parts, check_shareable, handed_out
from diffin.scoring.engines.ray_worker import Work, Worker, dumped, failure_of
from diffin.scoring.sink import FolderParts
from diffin.sources import Source

_LOOK = 0.5
"""Seconds between two looks at which parts are there, for the bar."""


@dataclass(frozen=True)
class Ray(ScoringEngine):
    """A Ray cluster, or as much of one as this machine makes.

    If Ray was not initialised, it is, for the time of the call. The folder of the scores, and that of the probes, must be on
    a file system that all nodes share.

    Attributes:
        workers: actors at most; ``None`` for as many as the cluster has room for now. Say how many where the cluster grows
            when it is asked to.
        cpus_per_worker: what an actor reserves, and as many threads as it computes with.
        gpus_per_worker: the same; the model is moved to the GPU of the actor. A share of one (0.5) lets actors share it.
        address: of the cluster; ``None`` for ``RAY_ADDRESS``, or a cluster on this machine, or one made of it.
        problem: a problem file that every actor loads, instead of being sent the task and the dataset; on every node at the
            same path.

    Raises:
        ScoringError: a number makes no sense.
    """

    workers: int | None = None
    cpus_per_worker: float = 1
    gpus_per_worker: float = 0
    address: str | None = None
    problem: str | Path | None = None

    name: ClassVar[str] = "ray"

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ScoringError(f"Ray(workers={self.workers}): pass 1 or more, or None for as many as there is room for")
        for what in ("cpus_per_worker", "gpus_per_worker"):
            if getattr(self, what) < 0:
                raise ScoringError(f"Ray({what}={getattr(self, what)}): pass 0 or more")
        if not self.cpus_per_worker and not self.gpus_per_worker:
            raise ScoringError(
                "Ray(cpus_per_worker=0, gpus_per_worker=0): an actor has to reserve something; pass 1 of one"
            )

    def check(self, source: Source, output: str | Path | None) -> None:
        check_shareable(self.name, source, output)
        _ray()

    def measure(self, job: Job) -> None:
        ray = _ray()
        assert isinstance(job.parts, FolderParts)  # check has refused by now
        with _initialised(self.address):
            room = self._room(ray.cluster_resources())
            most = self.workers or room
            ranges = handed_out(job.missing, job.manifest.part_rows, most)
            work = ray.put(self._packed(job))
            with phase("scoring", job.samples, show=job.progress) as bar, _watched(job, bar.advance):
                for failure in self._failures(work, ranges, (min(room, most), most)):
                    raise failure
        await_parts(job.parts, job.manifest)

    def _failures(self, work: Any, ranges: list[tuple[int, int]], actors: tuple[int, int]) -> Iterator[Exception]:
        """Let the actors, so many at least and at most, measure everything; yields the errors that they meet."""
        ray = _ray()
        with _silent(ray.data.DataContext.get_current()):
            items = [{"start": start, "stop": stop} for start, stop in ranges]
            # No fewer than there is room for: left to itself, the pool takes its time to grow.
            least, most = actors
            pool = ray.data.ActorPoolStrategy(min_size=least, max_size=most, max_tasks_in_flight_per_actor=2)
            measured = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
                Worker,
                fn_constructor_args=([work],),
                compute=pool,
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=self.cpus_per_worker,
                num_gpus=self.gpus_per_worker or None,
            )
            for block in measured.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                for failure in block.column("failure").to_pylist():
                    if failure is not None:
                        yield failure_of(failure)

    def _room(self, resources: dict[str, float]) -> int:
        """How many actors the cluster has room for."""
        wanted = {"CPU": self.cpus_per_worker, "GPU": self.gpus_per_worker}
        room = min(int(resources.get(kind, 0) // amount) for kind, amount in wanted.items() if amount)
        # None now may be some later, where the cluster grows.
        return max(1, room)

    def _packed(self, job: Job) -> tuple[list[str], bytes]:
        assert isinstance(job.parts, FolderParts)
        problem = None if self.problem is None else Path(self.problem).resolve()
        work = Work(
            job.manifest, job.settings, job.probes.path.resolve(), job.parts.path.resolve(), job.workers, problem,
            self.cpus_per_worker, self.gpus_per_worker > 0,
        )  # fmt: skip
        given = None if problem is not None else (job.task, job.dataset, job.collate)
        return dumped((work, given))


@contextmanager
def _initialised(address: str | None) -> Iterator[None]:
    """Ray, as it is, or for this time."""
    ray = _ray()
    if ray.is_initialized():
        yield
        return
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ScoringError(f"engine='ray': address={address!r} cannot be connected to ({error})") from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _silent(context: Any) -> Iterator[None]:
    """Ray Data without bars and reports of its own."""
    names = ("enable_progress_bars", "print_on_execution_start")
    kept = {name: getattr(context, name) for name in names if hasattr(context, name)}
    logger = logging.getLogger("ray.data")
    level = logger.level
    try:
        for name in kept:
            setattr(context, name, False)
        logger.setLevel(logging.ERROR)
        yield
    finally:
        logger.setLevel(level)
        for name, before in kept.items():
            setattr(context, name, before)


@contextmanager
def _watched(job: Job, advance: Callable[[int], None]) -> Iterator[None]:
    """Advance by the samples of the parts as they come to be there, whoever wrote them, and however often."""
    assert isinstance(job.parts, FolderParts)
    parts, size, length = job.parts, job.manifest.part_rows, job.manifest.length or 0
    told = set(parts.numbers())
    over = threading.Event()

    def tell() -> None:
        for number in parts.numbers() - told:
            advance(min((number + 1) * size, length) - number * size)
            told.add(number)

    def watch() -> None:
        pause = _LOOK
        while not over.wait(pause):
            begin = time.monotonic()
            tell()
            # Listing a folder of many files on a network takes its time, and somebody else's.
            pause = max(_LOOK, 20 * (time.monotonic() - begin))

    thread = threading.Thread(target=watch, name="diffin-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        tell()


def _ray() -> Any:
    """The module, imported where it is used: it takes seconds."""
    try:
        import ray.data
    except ImportError as error:
        raise MissingDependencyError(
            "engine='ray' needs Ray: pip install 'diffin[ray]', or pass engine='local'"
        ) from error
    return ray
