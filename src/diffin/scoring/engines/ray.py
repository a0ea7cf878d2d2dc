"""Measuring on a Ray cluster: Ray Data hands ranges of positions to a pool of actors that grows and shrinks.

The driver plans, and waits. Nothing but the numbers of parts travels: an actor opens the data, the probes and the folder of
the scores for itself. An actor or a node that dies is replaced, and what it was measuring is handed out again.
"""

from __future__ import annotations

import io
import logging
import pickle
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from diffin.errors import DiffinError, MissingDependencyError, ScoringError
from diffin.probes import ProbeSet
from diffin.problem import load_problem
from diffin.progress import phase
from diffin.sample import Sample
from diffin.scoring.engines.base import Job, ScoringEngine, await_parts, check_shareable, handed_out, write_parts
from diffin.scoring.manifest import Manifest
from diffin.scoring.measuring import Measuring
from diffin.scoring.plan import Settings, composed, go_on
from diffin.scoring.sink import FolderParts
from diffin.sources import Source, open_source
from diffin.task import frozen

if TYPE_CHECKING:
    import pyarrow as pa

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
                _Worker,
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
                        yield pickle.loads(failure)

    def _room(self, resources: dict[str, float]) -> int:
        """How many actors the cluster has room for."""
        wanted = {"CPU": self.cpus_per_worker, "GPU": self.gpus_per_worker}
        room = min(int(resources.get(kind, 0) // amount) for kind, amount in wanted.items() if amount)
        # None now may be some later, where the cluster grows.
        return max(1, room)

    def _packed(self, job: Job) -> tuple[list[str], bytes]:
        assert isinstance(job.parts, FolderParts)
        problem = None if self.problem is None else Path(self.problem).resolve()
        work = _Work(
            job.manifest, job.settings, job.probes.path.resolve(), job.parts.path.resolve(), job.workers, problem,
            self.cpus_per_worker, self.gpus_per_worker > 0,
        )  # fmt: skip
        given = None if problem is not None else (job.task, job.dataset, job.collate)
        return _dumped((work, given))


@dataclass(frozen=True)
class _Work:
    """What an actor has to know."""

    manifest: Manifest
    settings: Settings
    probes: Path
    output: Path
    readers: int
    problem: Path | None
    threads: float
    on_gpu: bool


class _Worker:
    """An actor: opens everything once, and measures ranges of positions."""

    def __init__(self, work: list[Any]) -> None:
        self._reference = work[0]
        self._measure: Callable[[int, int], None] | None = None

    def __call__(self, ranges: pa.Table) -> pa.Table:
        import pyarrow as pa

        failure: bytes | None = None
        try:
            self._measure = self._measure or self._opened()
            for asked in ranges.to_pylist():
                self._measure(asked["start"], asked["stop"])
        except Exception as error:  # It travels as data: Ray would wrap it into an account of its own processes.
            error.add_note(f"on node {socket.gethostname()}")
            failure = _pickled(error)
        return pa.table({"failure": pa.array([failure], pa.binary())})

    def _opened(self) -> Callable[[int, int], None]:
        work, given = _loaded(_ray().get(self._reference))
        if work.threads >= 1:
            torch.set_num_threads(int(work.threads))
        if work.on_gpu and not torch.cuda.is_available():
            raise ScoringError("gpus_per_worker: a node has a GPU for Ray, and torch.cuda is not available on it")
        if work.problem is not None:
            problem = load_problem(work.problem)
            given = problem.task, problem.train, problem.collate
        task, dataset, collate = given
        if work.on_gpu:
            task.model.to("cuda")
        source = composed(task, open_source(dataset, collate=collate, workers=work.readers))
        if Sample.of(source).digest() != work.manifest.sample:
            raise ScoringError(
                "the dataset that an actor has opened is not that of the driver; put the same data on every node, or in a "
                "place that all of them read"
            )
        probes = ProbeSet.open(work.probes)
        if probes.digest != work.manifest.probes["digest"]:
            raise ScoringError(f"{work.probes} holds other probes on this node than on the driver's; share the folder")
        engine = go_on(task, probes, work.settings, work.manifest).engine
        return partial(_measured, Measuring(engine, source, work.manifest), FolderParts(work.output), task.model)


def _measured(measuring: Measuring, parts: FolderParts, model: torch.nn.Module, start: int, stop: int) -> None:
    with frozen(model):
        for _ in write_parts(measuring, parts, start, stop, lambda amount: None):
            pass


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
        while not over.wait(_LOOK):
            tell()

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


def _dumped(content: object) -> tuple[list[str], bytes]:
    """What any process of the cluster can load, tensors of a GPU included: where its modules are looked for, and bytes."""
    from ray import cloudpickle

    buffer = io.BytesIO()
    try:
        torch.save(content, buffer, pickle_module=cloudpickle, pickle_protocol=pickle.HIGHEST_PROTOCOL)
    except (TypeError, AttributeError, pickle.PicklingError, RuntimeError) as error:
        raise ScoringError(
            f"engine='ray': the task or the dataset cannot be sent to another process ({error}); pass "
            "diffin.scoring.Ray(problem='problem.py'), a problem file that every actor loads for itself"
        ) from error
    return [str(Path(entry).resolve()) for entry in sys.path], buffer.getvalue()


def _loaded(dumped: tuple[list[str], bytes]) -> Any:
    paths, content = dumped
    sys.path += [path for path in paths if path not in sys.path]
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=False)
    except ImportError as error:
        raise ScoringError(
            f"an actor lacks what the task or the dataset is made of ({error}); install it on every node, or have Ray do so "
            "(runtime_env of ray.init or of the job)"
        ) from error


def _pickled(error: Exception) -> bytes:
    try:
        pickle.loads(found := pickle.dumps(error))
    except Exception:  # Anything may go wrong with an exception of somebody else's.
        kept = error if isinstance(error, DiffinError) else ScoringError(f"{type(error).__name__}: {error}")
        return pickle.dumps(ScoringError(str(kept)))
    return found
