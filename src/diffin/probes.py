"""Probes: what to measure at a checkpoint.

For a fixed query, every estimator asks a sample z for the same number at a checkpoint theta,

    weight * ( D_u l_z(theta) + D2_{v,d} l_z(theta) ),

a directional derivative along u and, for second-order estimators, a mixed one along v and d. Building probes is the
only part that needs gradients of anything; measuring them is a map over samples. They are saved as safetensors beside a
JSON index, so that the two halves can run on different machines, and they carry the parameters they belong to.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffin import vectors
from diffin.errors import ProbeError
from diffin.files import read_json, write_atomically, write_json
from diffin.self_probes import SelfProbe
from diffin.vectors import Vector

FORMAT_VERSION = 1
_INDEX = "probes.json"
_OWN_FILE = re.compile(r"probes\.json|(state|probe|carried)-\d{8,}(-\d{3,})?\.(safetensors|json)|.*\.part|\.tmp\w+")
_LEFT_BEHIND = re.compile(r".*\.part|\.tmp\w+")
"""What a process that was killed while it wrote leaves; safetensors, too, writes beside the file first."""


@dataclass(frozen=True)
class Probe:
    """One number to ask of every sample: ``weight * (D_u l_z + D2_{v,d} l_z)``.

    Attributes:
        weight: multiplies what is measured; the influence of a sample is the sum over all probes.
        u: direction of the first derivative.
        mixed: directions (v, d) of the mixed second derivative, or ``None`` for first order.
    """

    weight: float
    u: Vector
    mixed: tuple[Vector, Vector] | None = None

    def __post_init__(self) -> None:
        for vector in (self.u, *(self.mixed or ())):
            if not vectors.is_finite(vector):
                raise ProbeError(
                    "a direction of the probe is not finite: the gradient or Hessian product of the query or of the "
                    "curvature set overflowed at this checkpoint"
                )

    def tensors(self) -> dict[str, Tensor]:
        """What goes into a file of tensors."""
        roles = {"u": self.u} if self.mixed is None else {"u": self.u, "v": self.mixed[0], "d": self.mixed[1]}
        return {f"{role}/{name}": t for role, vector in roles.items() for name, t in vector.items()}


@dataclass(frozen=True)
class CheckpointProbes:
    """The probes of one checkpoint, and the state at which to measure them.

    Attributes:
        step: steps taken before the checkpoint.
        state: every tensor of the model there, by name.
        probes: one, or one per proxy batch; their weights already hold the share of each.
        self_probes: the same for self-influence; a set has probes of one kind.
    """

    step: int
    state: dict[str, Tensor]
    probes: tuple[Probe, ...]
    self_probes: tuple[SelfProbe, ...] = ()


@dataclass(frozen=True)
class ProbeSet:
    """Probes of all checkpoints, on disk; iterate to load one checkpoint at a time.

    Attributes:
        path: the folder.
        steps: steps taken before each checkpoint, ascending.
        counts: the number of probes of each checkpoint.
        parameters: names of the studied parameters.
        of_self: whether they ask for self-influence.
        metadata: which estimator, query and data they were built from.
        digest: identifies the contents; scores refer to it.
    """

    path: Path
    steps: tuple[int, ...]
    counts: tuple[int, ...]
    parameters: tuple[str, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    digest: str = ""
    of_self: bool = False
    # A checkpoint may be loaded again for every block of samples; its bytes are checked the first time.
    _verified: set[str] = field(default_factory=set, compare=False, repr=False)

    @classmethod
    def open(cls, path: str | Path) -> ProbeSet:
        """Open a complete set of probes.

        Raises:
            ProbeError: there is none, it is incomplete, or of a newer format.
        """
        path = Path(path)
        try:
            index = read_json(path / _INDEX)
        except FileNotFoundError:
            raise ProbeError(
                f"{path} holds no complete probes ({_INDEX} is missing); build them with diffin.build_probes"
            ) from None
        except ValueError as error:
            raise ProbeError(f"{path / _INDEX} is damaged ({error}); build the probes again") from None
        if index.get("format") != FORMAT_VERSION:
            raise ProbeError(f"{path} has probe format {index.get('format')!r}; this version reads {FORMAT_VERSION}")
        return cls(
            path=path,
            steps=tuple(entry["step"] for entry in index["checkpoints"]),
            counts=tuple(len(entry["weights"]) for entry in index["checkpoints"]),
            parameters=tuple(index["parameters"]),
            metadata=index["metadata"],
            digest=index["digest"],
            of_self=any("self" in entry for entry in index["checkpoints"]),
        )

    def __len__(self) -> int:
        """The number of checkpoints."""
        return len(self.steps)

    def __iter__(self) -> Iterator[CheckpointProbes]:
        return (self.load(position) for position in range(len(self)))

    def load(self, position: int) -> CheckpointProbes:
        """Read the probes of one checkpoint.

        Raises:
            ProbeError: a file is missing, truncated or does not hold what the index says.
        """
        entry = read_json(self.path / _INDEX)["checkpoints"][position]
        names = _file_names(entry["step"], len(entry["weights"]))
        state, *measured = (self._read(name, digest) for name, digest in zip(names, entry["digests"], strict=True))
        if "self" in entry:
            contents = zip(entry["weights"], entry["self"], measured, strict=True)
            return CheckpointProbes(entry["step"], state, (), tuple(SelfProbe.read(*content) for content in contents))
        probes = []
        for number, (weight, tensors) in enumerate(zip(entry["weights"], measured, strict=True)):
            parts: dict[str, Vector] = {"u": {}, "v": {}, "d": {}}
            for key, tensor in tensors.items():
                role, _, name = key.partition("/")
                parts[role][name] = tensor
            if set(parts["u"]) != set(self.parameters):
                raise ProbeError(
                    f"{self.path / _probe_name(entry['step'], number)} does not hold the parameters that {_INDEX} names"
                )
            probes.append(Probe(weight, parts["u"], (parts["v"], parts["d"]) if parts["v"] else None))
        return CheckpointProbes(entry["step"], state, tuple(probes))

    def _read(self, name: str, digest: str) -> dict[str, Tensor]:
        path = self.path / name
        try:
            if name not in self._verified and _digest(path) != digest:
                raise ProbeError(f"{path} is damaged: it is not what was written; build the probes again")
            tensors = load_file(str(path))
        except FileNotFoundError:
            raise ProbeError(f"{path} is missing; build the probes again") from None
        except (OSError, SafetensorError) as error:
            raise ProbeError(f"{path} cannot be read ({error}); build the probes again") from error
        self._verified.add(name)
        return tensors


class ProbeWriter:
    """Writes probes checkpoint by checkpoint; nothing is readable as a set before :meth:`finish`.

    Args:
        path: folder, made if absent. Checkpoints already written there by an interrupted run of the same ``metadata``
            are kept (see :meth:`has`).
        parameters: names of the studied parameters.
        metadata: JSON-able description of what the probes are built from; it identifies the run.

    Raises:
        ProbeError: the folder holds complete probes of another run.
    """

    def __init__(self, path: str | Path, parameters: list[str], metadata: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        self._parameters = parameters
        self._metadata = dict(metadata)
        self._run = hashlib.sha256(json.dumps([self._metadata, parameters], sort_keys=True).encode()).hexdigest()[:16]
        index = _read_index(self.path)
        if index is not None and index.get("run") != self._run:
            there = {**index.get("metadata", {}), "parameters": index.get("parameters")}
            now = {**json.loads(json.dumps(self._metadata)), "parameters": parameters}
            differing = sorted(key for key in {*there, *now} if there.get(key) != now.get(key))
            raise ProbeError(
                f"{self.path} holds probes of another run; what differs: {', '.join(differing)}. Pass another output, or "
                "resume=False to replace them"
            )

    def has(self, step: int) -> bool:
        """Whether an earlier, interrupted run of the same metadata has written this checkpoint completely."""
        try:
            entry = read_json(self.path / _entry_name(step))
            names = _file_names(step, len(entry["weights"]))
            return bool(entry["run"] == self._run) and [_digest(self.path / name) for name in names] == entry["digests"]
        except (OSError, ValueError, KeyError):
            return False

    def carried(self, step: int) -> dict[str, Tensor]:
        """What :meth:`write` was given beside the probes of ``step``.

        Raises:
            ProbeError: it is damaged.
        """
        path = self.path / _carried_name(step)
        try:
            return load_file(str(path))
        except (OSError, SafetensorError) as error:
            raise ProbeError(f"{path} cannot be read ({error}); build the probes again with resume=False") from error

    def write(self, checkpoint: CheckpointProbes, carried: Mapping[str, Tensor] | None = None) -> None:
        """Write the probes of a checkpoint, and what building the others will need if this build is interrupted."""
        if carried:
            _save(self.path / _carried_name(checkpoint.step), carried)
        digests = [_save(self.path / _state_name(checkpoint.step), checkpoint.state)]
        probes: list[Probe | SelfProbe] = [*checkpoint.probes, *checkpoint.self_probes]
        for number, probe in enumerate(probes):
            digests.append(_save(self.path / _probe_name(checkpoint.step, number), probe.tensors()))
        weights = [probe.weight for probe in probes]
        entry: dict[str, Any] = {"run": self._run, "step": checkpoint.step, "weights": weights, "digests": digests}
        if checkpoint.self_probes:
            entry["self"] = [probe.to_json() for probe in checkpoint.self_probes]
        with _writing(self.path):
            write_json(self.path / _entry_name(checkpoint.step), entry)

    def finish(self, steps: list[int]) -> ProbeSet:
        """Write the index over the checkpoints of ``steps`` and open the set."""
        entries = [read_json(self.path / _entry_name(step)) for step in steps]
        digest = hashlib.sha256(json.dumps([self._run, entries], sort_keys=True).encode()).hexdigest()[:16]
        index = {
            "format": FORMAT_VERSION,
            "run": self._run,
            "digest": digest,
            "metadata": self._metadata,
            "parameters": self._parameters,
            "checkpoints": [{key: value for key, value in entry.items() if key != "run"} for entry in entries],
        }
        with _writing(self.path):
            write_json(self.path / _INDEX, index)
            for step in steps:
                (self.path / _carried_name(step)).unlink(missing_ok=True)
            for file in self.path.iterdir():
                if _LEFT_BEHIND.fullmatch(file.name):
                    file.unlink()
        return ProbeSet.open(self.path)


def clear_probes(folder: Path) -> None:
    """Remove probes, complete or not, and nothing else, from a folder."""
    if folder.is_dir():
        for file in sorted(folder.iterdir()):
            if file.is_file() and _OWN_FILE.fullmatch(file.name):
                file.unlink()


def _read_index(folder: Path) -> dict[str, Any] | None:
    """The index of a complete set; ``None`` if there is none that can be read, as after an interrupted run."""
    try:
        return read_json(folder / _INDEX)
    except (FileNotFoundError, ValueError):
        return None


def _file_names(step: int, probes: int) -> list[str]:
    return [_state_name(step), *(_probe_name(step, number) for number in range(probes))]


def _state_name(step: int) -> str:
    return f"state-{step:08d}.safetensors"


def _probe_name(step: int, number: int) -> str:
    return f"probe-{step:08d}-{number:03d}.safetensors"


def _entry_name(step: int) -> str:
    return f"probe-{step:08d}.json"


def _carried_name(step: int) -> str:
    return f"carried-{step:08d}.safetensors"


def _save(path: Path, tensors: Mapping[str, Tensor]) -> str:
    # A contiguous copy each: safetensors refuses tensors that share memory, as tied weights do.
    own = {name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()}
    with _writing(path.parent), write_atomically(path) as part:
        save_file(own, str(part))
        return _digest(part)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turn what a full or failing disk raises into an error that says what is safe."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise ProbeError(
            f"could not write to {folder} ({error}); free some space, and build again: what is complete is kept"
        ) from error


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
