"""The processes of one computation: what each takes of it, what they add up, and how one that fails ends the others.

All of them run the same program (as ``torchrun`` starts it) and go through the same calls in the same order. They agree
through the key-value store of their process group rather than through collectives, because whoever waits at a store can
look up whether another one has failed. Only sums of tensors are collectives.
"""

from __future__ import annotations

import atexit
import base64
import os
import pickle
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from diffin.errors import ScoringError
from diffin.vectors import Vector

_T = TypeVar("_T")

_BUCKET_BYTES = 2**25
_PAUSES = (1e-5, 0.05)
"""Seconds between two looks at something that is waited for, at first and at most."""
_LOOK_AROUND = 0.2
"""Seconds between two looks for a rank that has failed."""

_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class RankError(ScoringError):
    """Another process of the computation has failed; its message says why."""


class Ranks:
    """The processes of a computation, seen from one of them; this class is that of a process on its own.

    Attributes:
        rank: which it is, 0 to ``count - 1``; 0 is the one that decides and writes.
        count: how many there are.
    """

    rank: int = 0
    count: int = 1

    def __init__(self) -> None:
        self._counters: dict[str, int] = {}

    def share(self, length: int) -> tuple[int, int]:
        """First position and end of what this process takes of ``length`` things."""
        return length * self.rank // self.count, length * (self.rank + 1) // self.count

    def once(self, make: Callable[[], _T]) -> _T:
        """What the first process makes, in all of them. It must be something that can be pickled."""
        return make()

    def add(self, name: str, amount: int) -> int:
        """Add to a counter that all processes share. Returns what it then is; it starts at 0."""
        self._counters[name] = self._counters.get(name, 0) + amount
        return self._counters[name]

    def wait(self, until: Callable[[], bool]) -> None:
        """Return as soon as ``until`` says so.

        Raises:
            ScoringError: another process has failed.
        """
        del until  # Whoever is alone has done it.

    def check(self) -> None:
        """Look, now and then, whether another process has failed.

        Raises:
            ScoringError: one has; the message is its own.
        """

    def summed(self, vector: Mapping[str, Tensor]) -> Vector:
        """The sum of what every process passes, the same bits in all of them."""
        return dict(vector)


ALONE = Ranks()


class GroupRanks(Ranks):
    """The ranks of the default process group of ``torch.distributed``. Made by :func:`ranks_of_torchrun`."""

    def __init__(self) -> None:
        super().__init__()
        self.rank, self.count = dist.get_rank(), dist.get_world_size()
        store = dist.distributed_c10d._get_default_store()
        # Every rank comes here as often as every other, so the keys of one computation are those of no other.
        number = store.add(f"diffin/{self.rank}/begun", 1)
        self._store = dist.PrefixStore(f"diffin/{number}", store)  # type: ignore[attr-defined]
        self._made = 0
        self._looked = time.monotonic()

    def once(self, make: Callable[[], _T]) -> _T:
        self._made += 1
        key = f"made/{self._made}"
        if self.rank == 0:
            made = make()
            self._store.set(key, base64.b64encode(pickle.dumps(made)).decode())
            return made
        self.wait(lambda: self._store.check([key]))
        found: _T = pickle.loads(base64.b64decode(self._store.get(key)))
        return found

    def add(self, name: str, amount: int) -> int:
        return int(self._store.add(f"count/{name}", amount))

    def wait(self, until: Callable[[], bool]) -> None:
        pause = _PAUSES[0]
        while not until():
            self.check()
            time.sleep(pause)
            pause = min(_PAUSES[1], 1.5 * pause)

    def check(self) -> None:
        if time.monotonic() - self._looked >= _LOOK_AROUND:
            self._looked = time.monotonic()
            self._raise_failure()

    def summed(self, vector: Mapping[str, Tensor]) -> Vector:
        found: Vector = {}
        for names in _buckets(vector):
            flat = torch.cat([vector[name].detach().reshape(-1) for name in names])
            self._add_up(flat)
            pieces = torch.split(flat, [vector[name].numel() for name in names])
            found |= {name: piece.view(vector[name].shape) for name, piece in zip(names, pieces, strict=True)}
        return {name: found[name] for name in vector}

    def _add_up(self, flat: Tensor) -> None:
        work = dist.all_reduce(flat, async_op=True)
        assert work is not None  # every process is in the default group
        self.wait(work.is_completed)
        work.wait()

    def fail(self, error: BaseException) -> None:
        """Tell the others."""
        told = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        self._store.set("failed", f"rank {self.rank} of {self.count} failed with {told}")

    def leave(self) -> None:
        """Come to the end; the first process, which may hold the store, waits for the others."""
        if self.rank:
            self.add("left", 1)
        else:
            self.wait(lambda: self.add("left", 0) == self.count - 1)

    def _raise_failure(self) -> None:
        if self._store.check(["failed"]):
            raise RankError(self._store.get("failed").decode())

    @contextmanager
    def entered(self) -> Iterator[None]:
        """A failure of this process inside becomes one of all, with the same message."""
        try:
            yield
            self.leave()
        except RankError:
            raise
        except BaseException as error:
            try:
                if isinstance(error, RuntimeError):
                    # What another rank's end looks like from here: sums and the store break off.
                    self._raise_failure()
                self.fail(error)
            except dist.DistError:  # The store is gone with the process that held it.
                pass
            raise


@contextmanager
def ranks_of_torchrun(device: torch.device) -> Iterator[Ranks]:
    """The processes that ``torchrun`` has started, each of which comes here.

    A process group that exists is used and left alone. If there is none, one is made, which lasts as long as the process:
    gloo, or for a model on a GPU nccl.

    Args:
        device: where the sums will be.

    Raises:
        ScoringError: this process was not started by ``torchrun``, or its group cannot add up tensors of the device.
    """
    if not dist.is_available():
        raise ScoringError("engine='torchrun': this build of torch has no torch.distributed; pass engine='local'")
    if not dist.is_initialized():
        _make_group(device)
    elif device.type == "cpu" and dist.get_backend() == "nccl":
        raise ScoringError(
            "engine='torchrun': the process group is of nccl, for GPUs only, and the model of the task is on the CPU: "
            "move it, or pass backend='cpu:gloo,cuda:nccl' to init_process_group"
        )
    ranks = GroupRanks()
    with ranks.entered():
        yield ranks


def local_rank() -> int | None:
    """Which process of this machine this is, where ``torchrun`` has started it."""
    text = os.environ.get("LOCAL_RANK", "")
    return int(text) if text.isdecimal() else None


def _make_group(device: torch.device) -> None:
    missing = [name for name in _VARIABLES if name not in os.environ]
    if missing:
        raise ScoringError(
            f"engine='torchrun': this process was not started by torchrun ({', '.join(missing)} not set). Start the script "
            "with `torchrun --nproc_per_node=2 script.py`, or the command line with `torchrun --nproc_per_node=2 -m diffin "
            "score ... --engine torchrun`; without, pass engine='local'"
        )
    options: dict[str, Any] = {"backend": "gloo"}
    if device.type == "cuda":
        own = torch.device("cuda", local_rank() or 0) if device.index is None else device
        torch.cuda.set_device(own)
        options = {"backend": "cpu:gloo,cuda:nccl", "device_id": own}
    # Ranks that wait look for failures themselves; a long step of one of them is none.
    dist.init_process_group(**options, timeout=timedelta(hours=6))
    atexit.register(_leave_group)


def _leave_group() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _buckets(vector: Mapping[str, Tensor]) -> list[list[str]]:
    """Names of tensors that are added up at once, so that many small ones do not take as many messages."""
    by_kind: dict[tuple[torch.dtype, torch.device], list[list[str]]] = {}
    held: dict[tuple[torch.dtype, torch.device], int] = {}
    for name, t in vector.items():
        kind = (t.dtype, t.device)
        size = t.numel() * t.element_size()
        if kind not in by_kind or held[kind] + size > _BUCKET_BYTES:
            by_kind.setdefault(kind, []).append([])
            held[kind] = 0
        by_kind[kind][-1].append(name)
        held[kind] += size
    return [names for buckets in by_kind.values() for names in buckets]
