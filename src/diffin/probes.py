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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from torch import Tensor

from diffin import vectors
from diffin.across_probes import AcrossProbe, End
from diffin.errors import ProbeError
from diffin.files import read_json, write_json
from diffin.probe_files import (
    FORMAT_VERSION,
    INDEX,
    LEFT_BEHIND,
    OWN_FILE,
    carried_name,
    check_directions,
    digest_of,
    end_name,
    entry_name,
    file_names,
    load,
    probe_name,
    read_index,
    save,
    state_name,
    writing,
)
from diffin.self_probes import SelfProbe
from diffin.vectors import Vector


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
    self_probes: tuple[SelfProbe | AcrossProbe, ...] = ()


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
    # Held once for all checkpoints that are in use.
    _ends: WeakValueDictionary[str, End] = field(default_factory=WeakValueDictionary, compare=False, repr=False)

    @classmethod
    def open(cls, path: str | Path) -> ProbeSet:
        """Open a complete set of probes.

        Raises:
            ProbeError: there is none, it is incomplete, or of a newer format.
        """
        path = Path(path)
        try:
            index = read_index(path)
        except FileNotFoundError:
            raise ProbeError(
                f"{path} holds no complete probes ({INDEX} is missing); build them with diffin.build_probes"
            ) from None
        except ProbeError:  # which is a ValueError
            raise
        except (OSError, ValueError) as error:
            raise ProbeError(f"{path / INDEX} is damaged ({error}); build the probes again") from None
        return cls(
            path=path,
            steps=tuple(entry["step"] for entry in index["checkpoints"]),
            counts=tuple(len(entry["weights"]) for entry in index["checkpoints"]),
            parameters=tuple(index["parameters"]),
            metadata=index["metadata"],
            digest=index["digest"],
            of_self=any("self" in entry or "end" in entry for entry in index["checkpoints"]),
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
        try:
            index = read_index(self.path)
            entry = index["checkpoints"][position]
        except (OSError, ValueError, IndexError) as error:
            raise ProbeError(f"{self.path / INDEX} has changed ({error}); build the probes again") from None
        names = file_names(entry["step"], len(entry["weights"]))
        state, *measured = (self._read(name, digest) for name, digest in zip(names, entry["digests"], strict=True))
        if "self" in entry:
            contents = zip(entry["weights"], entry["self"], measured, strict=True)
            of_self = tuple(SelfProbe.read(*content) for content in contents)
            for own in of_self:
                check_directions(own.vectors(), state)
            return CheckpointProbes(entry["step"], state, (), of_self)
        if "end" in entry:
            end = self._end(end_name(index["run"]), entry["end"])
            across = [AcrossProbe.read(w, end, tensors) for w, tensors in zip(entry["weights"], measured, strict=True)]
            for beside in across:
                check_directions([beside.rest, beside.directions], state)
            return CheckpointProbes(entry["step"], state, (), tuple(across))
        probes = []
        for number, (weight, tensors) in enumerate(zip(entry["weights"], measured, strict=True)):
            parts: dict[str, Vector] = {"u": {}, "v": {}, "d": {}}
            for key, tensor in tensors.items():
                role, _, name = key.partition("/")
                parts.setdefault(role, {})[name] = tensor
            mixed = set(parts["v"]) | set(parts["d"])
            if (
                len(parts) > 3
                or set(parts["u"]) != set(self.parameters)
                or (mixed and not set(parts["v"]) == set(parts["d"]) == set(self.parameters))
            ):
                raise ProbeError(
                    f"{self.path / probe_name(entry['step'], number)} does not hold the parameters that {INDEX} names"
                )
            check_directions(parts.values(), state)
            probes.append(Probe(weight, parts["u"], (parts["v"], parts["d"]) if parts["v"] else None))
        return CheckpointProbes(entry["step"], state, tuple(probes))

    def _end(self, name: str, digest: str) -> End:
        end = self._ends.get(name)
        if end is None:
            end = End.read(self._read(name, digest), self.parameters)
            check_directions([end.basis], end.state)
            self._ends[name] = end
        return end

    def _read(self, name: str, digest: str) -> dict[str, Tensor]:
        tensors = load(self.path / name, None if name in self._verified else digest)
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
        self._end: tuple[End, str] | None = None
        index = _read_index(self.path)
        if index is not None and index.get("run") != self._run:
            told = index.get("metadata")
            there = {**(told if isinstance(told, dict) else {}), "parameters": index.get("parameters")}
            now = {**json.loads(json.dumps(self._metadata)), "parameters": parameters}
            differing = sorted(key for key in {*there, *now} if there.get(key) != now.get(key))
            raise ProbeError(
                f"{self.path} holds probes of another run; what differs: {', '.join(differing)}. Pass another output, or "
                "resume=False to replace them"
            )

    def has(self, step: int) -> bool:
        """Whether an earlier, interrupted run of the same metadata has written this checkpoint completely."""
        try:
            entry = read_json(self.path / entry_name(step))
            names = file_names(step, len(entry["weights"]))
            if "end" in entry and entry["end"] != digest_of(self.path / end_name(self._run)):
                return False
            return (
                bool(entry["run"] == self._run) and [digest_of(self.path / name) for name in names] == entry["digests"]
            )
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def carried(self, step: int) -> dict[str, Tensor]:
        """What :meth:`write` was given beside the probes of ``step``.

        Raises:
            ProbeError: it is damaged.
        """
        return load(self.path / carried_name(step), None)

    def end(self) -> End | None:
        """What the probes that an earlier, interrupted run of the same metadata has written have in common, if any have."""
        path = self.path / end_name(self._run)
        if self._end is None and path.exists():
            self._end = End.read(load(path, None), self._parameters), digest_of(path)
        return None if self._end is None else self._end[0]

    def write(self, checkpoint: CheckpointProbes, carried: Mapping[str, Tensor] | None = None) -> None:
        """Write the probes of a checkpoint, and what building the others will need if this build is interrupted."""
        if carried:
            save(self.path / carried_name(checkpoint.step), carried)
        digests = [save(self.path / state_name(checkpoint.step), checkpoint.state)]
        probes: list[Probe | SelfProbe | AcrossProbe] = [*checkpoint.probes, *checkpoint.self_probes]
        for number, probe in enumerate(probes):
            digests.append(save(self.path / probe_name(checkpoint.step, number), probe.tensors()))
        weights = [probe.weight for probe in probes]
        entry: dict[str, Any] = {"run": self._run, "step": checkpoint.step, "weights": weights, "digests": digests}
        of_self = [probe for probe in checkpoint.self_probes if isinstance(probe, SelfProbe)]
        across = [probe for probe in checkpoint.self_probes if isinstance(probe, AcrossProbe)]
        if of_self:
            entry["self"] = [probe.to_json() for probe in of_self]
        elif across:
            entry["end"] = self._written(across[0].end)
        with writing(self.path):
            write_json(self.path / entry_name(checkpoint.step), entry)

    def _written(self, end: End) -> str:
        """The digest of the file of an end, written unless it is there."""
        if self._end is None or self._end[0] is not end:
            self._end = end, save(self.path / end_name(self._run), end.tensors())
        return self._end[1]

    def finish(self, steps: list[int]) -> ProbeSet:
        """Write the index over the checkpoints of ``steps`` and open the set."""
        entries = [read_json(self.path / entry_name(step)) for step in steps]
        digest = hashlib.sha256(json.dumps([self._run, entries], sort_keys=True).encode()).hexdigest()[:16]
        index = {
            "format": FORMAT_VERSION,
            "run": self._run,
            "digest": digest,
            "metadata": self._metadata,
            "parameters": self._parameters,
            "checkpoints": [{key: value for key, value in entry.items() if key != "run"} for entry in entries],
        }
        with writing(self.path):
            write_json(self.path / INDEX, index)
            for step in steps:
                (self.path / carried_name(step)).unlink(missing_ok=True)
            for file in self.path.iterdir():
                # The end of another run can only be what was interrupted before this one.
                if LEFT_BEHIND.fullmatch(file.name) or (file.match(end_name("*")) and file.name != end_name(self._run)):
                    file.unlink()
        return ProbeSet.open(self.path)


def clear_probes(folder: Path) -> None:
    """Remove probes, complete or not, and nothing else, from a folder."""
    if folder.is_dir():
        for file in sorted(folder.iterdir()):
            if file.is_file() and OWN_FILE.fullmatch(file.name):
                file.unlink()


def _read_index(folder: Path) -> dict[str, Any] | None:
    """The index of a complete set; ``None`` if there is none that can be read, as after an interrupted run."""
    try:
        return read_json(folder / INDEX)
    except (OSError, ValueError):
        return None
