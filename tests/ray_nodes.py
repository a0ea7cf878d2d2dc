"""Ray clusters of several nodes on this machine, each in processes of its own, for tests and benchmarks that end some.

Each node has an address of its own (127.0.0.2, 127.0.0.3, ...). Nothing here ends what it has not started: ``ray stop``
would end every Ray process of the machine.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path


class Node:
    """A node, and how to end it.

    Args:
        folder: for its log.
        address: of the node, 127.0.0.2 and up.
        head: ``host:port`` of the head to join; ``None`` to be one.
        port: of the head.
        cpus: how many actors it has room for.
        environment: of its processes.
    """

    def __init__(
        self, folder: Path, address: str, head: str | None, port: int, cpus: int, environment: Mapping[str, str]
    ) -> None:
        ray = str(Path(sys.executable).with_name("ray"))
        where = [f"--address={head}"]
        if head is None:
            # Elsewhere than usual, so that nobody else's ray.init() takes this cluster for the one of the machine.
            self.temporary = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
            where = ["--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={self.temporary}"]
        command = [
            ray, "start", "--block", f"--num-cpus={cpus}", "--object-store-memory=100000000",
            f"--node-ip-address={address}", "--disable-usage-stats", *where,
        ]  # fmt: skip
        self.address, self.log = address, folder / f"node-{address}-{secrets.token_hex(3)}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=dict(environment), start_new_session=True
            )

    def await_start(self, seconds: float = 90) -> bool:
        """Whether it came up."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            if "Ray runtime started" in self.log.read_text():
                return True
            time.sleep(0.2)
        return False

    def kill(self) -> None:
        """End it at once, with everything it has started, as if the machine were gone."""
        # Read before the first one dies: whose parent is gone has another.
        for pid in [*descendants(self.process.pid), self.process.pid]:
            with suppress(ProcessLookupError, FileNotFoundError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


class Cluster:
    """A head without room for workers, and nodes with room for one each. Use it as a context.

    Args:
        folder: for logs and the token.
        nodes: how many beside the head.
    """

    def __init__(self, folder: Path, nodes: int) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        token = folder / "token"
        token.write_text(secrets.token_hex(32))
        token.chmod(0o600)
        # One token for all: what the first process leaves in the home folder is not sent by those that join.
        self.environment = {
            **os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "OMP_NUM_THREADS": "1",
            "RAY_health_check_period_ms": "500", "RAY_health_check_failure_threshold": "3",
            "RAY_health_check_initial_delay_ms": "1000",
        }  # fmt: skip
        self._port = _free_port()
        self.address = f"127.0.0.2:{self._port}"
        self._count = nodes
        self._number = 2
        self.nodes: list[Node] = []

    def __enter__(self) -> Cluster:
        self.head = Node(self.folder, "127.0.0.2", None, self._port, 0, self.environment)
        try:
            if not self.head.await_start():
                raise RuntimeError(f"the head did not come up: {self.head.log.read_text()}")
            for _ in range(self._count):
                self.add()
        except BaseException:
            self.__exit__()
            raise
        return self

    def add(self) -> Node:
        """Let one more node join. On a busy machine, Ray may give up on one that takes long; then another is tried."""
        for _ in range(3):
            self._number += 1
            node = Node(self.folder, f"127.0.0.{self._number}", self.address, self._port, 1, self.environment)
            self.nodes.append(node)
            if node.await_start():
                return node
            self.lose(-1)
        raise RuntimeError(f"no node came up: {node.log.read_text()}")

    def lose(self, number: int) -> None:
        """End a node at once."""
        self.nodes.pop(number).kill()

    def __exit__(self, *_: object) -> None:
        while self.nodes:
            self.lose(0)
        self.head.kill()
        shutil.rmtree(self.head.temporary, ignore_errors=True)


def descendants(pid: int) -> list[int]:
    """The processes that a process has started, theirs included, as of now."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(ProcessLookupError, FileNotFoundError):
                # The name stands in brackets and may hold spaces.
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, pending = [], [pid]
    while pending:
        following = children.get(pending.pop(), [])
        found += following
        pending += following
    return found


def workers_of(pid: int, name: str = "MapWorker") -> list[int]:
    """Those of the descendants that are actors of a class of that name."""
    found = []
    for child in descendants(pid):
        with suppress(ProcessLookupError, FileNotFoundError):
            if name in Path(f"/proc/{child}/cmdline").read_text():
                found.append(child)
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.2", 0))
        return int(probe.getsockname()[1])
