"""What an actor of a Ray cluster does, and how it is told."""

from __future__ import annotations

import io
import pickle
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from diffin.errors import DiffinError, ScoringError
from diffin.probes import ProbeSet
from diffin.problem import load_problem
from diffin.sample import Sample
from diffin.scoring.engines.base import write_parts
from diffin.scoring.manifest import Manifest
from diffin.scoring.measuring import Measuring
from diffin.scoring.plan import Settings, composed, go_on
from diffin.scoring.sink import FolderParts
from diffin.sources import open_source
from diffin.task import frozen

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Work:
    """What an actor has to know.

    Attributes:
        manifest: how to measure.
        settings: what the caller asked for.
        probes: their folder.
        output: the folder of the scores.
        readers: processes that read the data for it.
        problem: a file to take task and data from.
        threads: to compute with.
        on_gpu: whether the model is to be moved to one.
    """

    manifest: Manifest
    settings: Settings
    probes: Path
    output: Path
    readers: int
    problem: Path | None
    threads: float
    on_gpu: bool


class Worker:
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
        import ray

        work, given = _loaded(ray.get(self._reference))
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


def dumped(content: object) -> tuple[list[str], bytes]:
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


def failure_of(pickled: bytes) -> Exception:
    """The error that an actor met."""
    error: Exception = pickle.loads(pickled)
    return error
